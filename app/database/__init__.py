"""The platform's heart: engines, pools and the roads to the database. Knows no web framework and no settings."""

from app.database.base import Base, TimestampMixin
from app.database.engine import make_engine, warm_up
from app.database.session import Database, ReadSession, StatementSession, WriteSession

__all__ = [
    "Base",
    "Database",
    "ReadSession",
    "StatementSession",
    "TimestampMixin",
    "WriteSession",
    "make_engine",
    "warm_up",
]
