"""The table of posts."""

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.database import Base, TimestampMixin
from app.domains.users.models import User


class Post(TimestampMixin, Base):
    """A post and its author."""

    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200))
    content: Mapped[str] = mapped_column(Text)

    # lazy="raise": an author that the query did not load is an error, not a hidden query.
    author: Mapped[User] = relationship(lazy="raise")

    __table_args__ = (
        # The sort orders of the lists. The id makes them unique. The last one also serves the foreign key.
        Index(None, "created_at", "id"),
        Index(None, "title", "id"),
        Index(None, "author_id", "created_at", "id"),
        {"sqlite_autoincrement": True},
    )
