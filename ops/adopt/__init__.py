"""Give the template a name of its own: `make adopt name=acme` (docs/adopting.md)."""
