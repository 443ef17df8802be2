"""Alembic's environment, the revisions in `versions/`, and the helpers that both use."""
