"""The status of the stack for the live page, computed from the scrapes of the last minutes."""
