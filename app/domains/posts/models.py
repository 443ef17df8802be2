from sqlalchemy import BigInteger, ForeignKey, Identity, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.database import Base, TimestampMixin
from app.domains.users.models import User


class Post(TimestampMixin, Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200))
    content: Mapped[str] = mapped_column(Text)

    # "raise": an access that would load behind the caller's back fails at once, in the first test that makes it.
    author: Mapped[User] = relationship(lazy="raise")

    __table_args__ = (
        # What the lists can be sorted by; the id settles ties. The last one serves the foreign key as well.
        Index(None, "created_at", "id"),
        Index(None, "title", "id"),
        Index(None, "author_id", "created_at", "id"),
        {"sqlite_autoincrement": True},
    )
