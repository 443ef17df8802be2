"""The connection budget: its arithmetic, the sources of its numbers, and the check before a start."""
