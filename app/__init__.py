"""Headroom: a FastAPI + PostgreSQL stack with a connection budget."""
