"""The table of users."""

from sqlalchemy import BigInteger, Identity, Index, Integer, String, false, func, true
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, TimestampMixin


class User(TimestampMixin, Base):
    """A user account."""

    __tablename__ = "users"

    # SQLite generates ids only for a column of type INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(255))
    is_active: Mapped[bool] = mapped_column(default=True, server_default=true())
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
