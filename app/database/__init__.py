"""Engines, pools and sessions. Imports no web framework and no settings."""

from app.database.base import Base, TimestampMixin
from app.database.by_key import KeyedSelect
from app.database.engine import make_engine, warm_up
from app.database.session import Database, ReadSession, StatementSession
from app.database.shared_insert import SharedInsert
from app.database.write_session import WriteSession
from app.pool_options import PoolOptions

__all__ = [
    "Base",
    "Database",
    "KeyedSelect",
    "PoolOptions",
    "ReadSession",
    "SharedInsert",
    "StatementSession",
    "TimestampMixin",
    "WriteSession",
    "make_engine",
    "warm_up",
]
