"""The status of the stack for the live page, computed from the last minutes of scrapes."""
