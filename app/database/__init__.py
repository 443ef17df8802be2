"""The platform's heart: engines, pools and the two roads to the database. Knows no web framework and no settings."""

from app.database.base import Base, TimestampMixin
from app.database.engine import make_engine
from app.database.session import Database, ReadSession, WriteSession

__all__ = ["Base", "Database", "ReadSession", "TimestampMixin", "WriteSession", "make_engine"]
