"""Faults under steady traffic: what clients are told is compared with what the database holds. See docs/faults.md."""
