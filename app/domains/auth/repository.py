from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.database import WriteSession
from app.domains.auth.models import SignInAttempts

# A sign-in takes this many that have expired with it, so that the table does not grow.
_SWEEP = 10


class AttemptRepository:
    def __init__(self, session: WriteSession) -> None:
        self._session = session

    async def count(self, subjects: Sequence[str], *, now: datetime, window: timedelta) -> dict[str, SignInAttempts]:
        """Count an attempt for each subject; the counts with this one in them."""
        insert: Any = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[self._session.get_bind().dialect.name]
        # In one order everywhere: two sign-ins that lock the same rows cannot deadlock.
        rows = [{"subject": each, "attempts": 1, "expires_at": now + window} for each in sorted(subjects)]
        expired = SignInAttempts.expires_at <= now
        statement = insert(SignInAttempts).values(rows)
        counted = await self._session.scalars(
            statement.on_conflict_do_update(
                index_elements=[SignInAttempts.subject],
                set_={
                    "attempts": case((expired, 1), else_=SignInAttempts.attempts + 1),
                    "expires_at": case((expired, now + window), else_=SignInAttempts.expires_at),
                },
            ).returning(SignInAttempts)
        )
        return {each.subject: each for each in counted}

    async def forgive(self, *, account: str, address: str) -> None:
        """After a success: the account starts anew, and the address is not charged for this one."""
        await self._session.execute(delete(SignInAttempts).where(SignInAttempts.subject == account))
        await self._session.execute(
            update(SignInAttempts)
            .where(SignInAttempts.subject == address, SignInAttempts.attempts > 0)
            .values(attempts=SignInAttempts.attempts - 1)
        )

    async def sweep(self, now: datetime) -> None:
        """Delete some of what has expired, passing over what another sign-in is deleting."""
        some = select(SignInAttempts.subject).where(SignInAttempts.expires_at <= now).limit(_SWEEP)
        await self._session.execute(
            delete(SignInAttempts).where(SignInAttempts.subject.in_(some.with_for_update(skip_locked=True)))
        )
