"""Give the template a name of its own: `make adopt name=orbit` (docs/adopting.md)."""
