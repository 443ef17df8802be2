from sqlalchemy import BigInteger, Identity, Index, Integer, String, false, func, true
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, TimestampMixin


class User(TimestampMixin, Base):
    __tablename__ = "users"

    # SQLite numbers rows only in a column of type INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(255))
    is_active: Mapped[bool] = mapped_column(default=True, server_default=true())
    is_admin: Mapped[bool] = mapped_column(default=False, server_default=false())

    __table_args__ = (
        # One account for an address, however it is capitalised. An index: a constraint takes no expression.
        Index("uq_users_email", func.lower(email), unique=True),
        # What the list can be sorted by; the id settles ties.
        Index(None, "created_at", "id"),
        Index(None, "name", "id"),
        Index(None, "email", "id"),
        # SQLite would give a deleted user's id, and with it their token, to the next one.
        {"sqlite_autoincrement": True},
    )
