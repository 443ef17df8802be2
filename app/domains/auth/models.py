"""The table that limits sign-ins."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base
from app.database.base import Timestamp


class SignInAttempts(Base):
    """The number of failed and unfinished sign-ins of one account or client address, for all workers and replicas."""

    __tablename__ = "sign_in_attempts"

    subject: Mapped[str] = mapped_column(String(80), primary_key=True)
    attempts: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(Timestamp, index=True)
