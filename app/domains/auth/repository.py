from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.database import WriteSession
from app.domains.auth.models import SignInAttempts

# A sign-in takes this many that have expired with it, so that the table does not grow.
_SWEEP = 10


class AttemptRepository:
    """Who touches both an address and an account touches the address first: so two sign-ins cannot deadlock."""

    def __init__(self, session: WriteSession) -> None:
        self._session = session

    async def count(self, subject: str, *, now: datetime, window: timedelta) -> SignInAttempts:
        """Count an attempt; the count with this one in it."""
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

    async def forgive(self, *, account: str, address: str) -> None:
        """After a success: the account starts anew, and the address is not charged for this one."""
        await self._session.execute(
            update(SignInAttempts)
            .where(SignInAttempts.subject == address, SignInAttempts.attempts > 0)
            .values(attempts=SignInAttempts.attempts - 1)
        )
        await self._session.execute(delete(SignInAttempts).where(SignInAttempts.subject == account))

    async def sweep(self, now: datetime) -> None:
        """Delete some of what has expired, passing over what another sign-in is deleting."""
        some = select(SignInAttempts.subject).where(SignInAttempts.expires_at <= now).limit(_SWEEP)
        await self._session.execute(
            delete(SignInAttempts).where(SignInAttempts.subject.in_(some.with_for_update(skip_locked=True)))
        )
