"""What every model inherits: metadata that names constraints, and timestamps with a time zone."""

from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, MetaData, func
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# Alembic can only drop or alter named constraints, and `error_mapping.py` recognises a violated one by its name.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The declarative base of every model."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)

    # Fetch server-computed values with RETURNING. Otherwise, reading `updated_at` after an UPDATE would be a lazy load,
    # which an async session cannot do.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - DeclarativeBase declares it


class _SQLiteUTC(TypeDecorator[datetime]):
    """Store UTC in SQLite, which has no time zones, and read it as UTC.

    In whole seconds, like SQLite's CURRENT_TIMESTAMP: times are text there, and "12:00:00" < "12:00:00.000000".
    """

    impl = sqlite.DATETIME(truncate_microseconds=True)  # type: ignore[no-untyped-call]
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


# A variant, not a decorator around the type: PostgreSQL then pays nothing for the conversion.
Timestamp = DateTime(timezone=True).with_variant(_SQLiteUTC(), "sqlite")


class TimestampMixin:
    """Adds `created_at` and `updated_at`, set by the database's clock, in UTC."""

    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now(), sort_order=100)
    updated_at: Mapped[datetime] = mapped_column(
        Timestamp, server_default=func.now(), onupdate=func.now(), sort_order=101
    )
