"""Counts sign-in attempts in the database."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.database import WriteSession
from app.domains.auth.models import SignInAttempts

# Expired rows that one sign-in deletes. More than the two that it adds, so the table does not grow.
_EXPIRED_PER_SIGN_IN = 10


class AttemptRepository:
    """Attempts by subject: a client address or an account.

    Lock order: address row, then account row. This prevents deadlocks between sign-ins.
    """

    def __init__(self, session: WriteSession) -> None:
        self._session = session

    async def add(self, subject: str, *, now: datetime, window: timedelta) -> SignInAttempts:
        """Count one attempt and return the row with the new count. An expired count starts again at one."""
        insert: Any = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[self._session.get_bind().dialect.name]
        expired = SignInAttempts.expires_at <= now
        statement = insert(SignInAttempts).values(subject=subject, attempts=1, expires_at=now + window)
        counted: SignInAttempts = await self._session.scalar(
            statement.on_conflict_do_update(
                index_elements=[SignInAttempts.subject],
                set_={
                    "attempts": case((expired, 1), else_=SignInAttempts.attempts + 1),
                    "expires_at": case((expired, now + window), else_=SignInAttempts.expires_at),
                },
            ).returning(SignInAttempts)
        )
        return counted

    async def record_success(self, *, account: str, address: str) -> None:
        """Delete the account's count and take one attempt off the address's count."""
        await self._session.execute(
            update(SignInAttempts)
            .where(SignInAttempts.subject == address, SignInAttempts.attempts > 0)
            .values(attempts=SignInAttempts.attempts - 1)
        )
        await self._session.execute(delete(SignInAttempts).where(SignInAttempts.subject == account))

    async def delete_expired(self, now: datetime) -> None:
        """Delete a few expired rows. Skip rows that another sign-in has locked."""
        expired = select(SignInAttempts.subject).where(SignInAttempts.expires_at <= now).limit(_EXPIRED_PER_SIGN_IN)
        await self._session.execute(
            delete(SignInAttempts).where(SignInAttempts.subject.in_(expired.with_for_update(skip_locked=True)))
        )
