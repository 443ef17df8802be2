"""The command line: `headroom COMMAND`. `main.py` parses it; each command has a module."""
