"""One package a domain. A domain knows the platform below it, never the programs above."""
