"""Every model, under the name people look for."""

from app.registry import Post, User

__all__ = ["Post", "User"]
