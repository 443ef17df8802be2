from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base
from app.database.base import Timestamp


class SignInAttempts(Base):
    """Sign-ins that failed, or are under way, by account and by address. Shared by every worker and replica."""

    __tablename__ = "sign_in_attempts"

    subject: Mapped[str] = mapped_column(String(80), primary_key=True)
    attempts: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(Timestamp, index=True)
