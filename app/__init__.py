"""Headroom: a FastAPI + PostgreSQL stack that knows how many database connections it has left."""
