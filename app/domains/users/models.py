"""The table of users."""

from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, Identity, Index, Integer, String, false, func
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, TimestampMixin
from app.database.base import Timestamp


class User(TimestampMixin, Base):
    """A user account."""

    __tablename__ = "users"

    # SQLite generates ids only for a column of type INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(255))
    # NULL: the account is active. It replaced the column `is_active` (docs/expand-and-contract.md).
    deactivated_at: Mapped[datetime | None] = mapped_column(Timestamp)
    is_admin: Mapped[bool] = mapped_column(default=False, server_default=false())

    __table_args__ = (
        # One account per e-mail address, case-insensitive. An index, because a constraint cannot contain an expression.
        Index("uq_users_email", func.lower(email), unique=True),
        # The sort orders of the list. The id makes them unique.
        Index(None, "created_at", "id"),
        Index(None, "name", "id"),
        Index(None, "email", "id"),
        # Without it, SQLite would reuse a deleted user's id, for which an access token may still be valid.
        {"sqlite_autoincrement": True},
    )

    @hybrid_property
    def is_active(self) -> bool:
        """Return True if the account was not deactivated."""
        return self.deactivated_at is None

    @is_active.inplace.setter
    def _set_active(self, value: bool) -> None:
        if value:
            self.deactivated_at = None
        elif self.deactivated_at is None:  # an account that is inactive keeps its time
            self.deactivated_at = func.now()

    @is_active.inplace.expression
    @classmethod
    def _active(cls) -> ColumnElement[bool]:
        return cls.deactivated_at.is_(None)
