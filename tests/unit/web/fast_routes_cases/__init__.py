"""Applications and requests with which plain FastAPI is compared, by kind."""
