"""Every ORM model, importable from one module."""

from app.registry import Post, User

__all__ = ["Post", "User"]
