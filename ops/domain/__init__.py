"""`make domain`: write a complete small domain (docs/adding-a-domain.md)."""
