"""The domains, one package each. A domain imports from the platform below it and never from the programs above it."""
