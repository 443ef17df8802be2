from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import ceil
from typing import NamedTuple

from app.database import Database
from app.domains.auth.errors import InvalidCredentials
from app.domains.auth.repository import AttemptRepository
from app.domains.auth.tokens import Tokens
from app.domains.users.passwords import verify_password
from app.domains.users.repository import UserReader, UserRepository
from app.errors import NotAuthenticated, TooManyAttempts
from app.web.auth import Principal


class SignInLimits(NamedTuple):
    """Sign-ins that may fail within `window_seconds`, for one account and from one address."""

    per_account: int
    per_address: int
    window_seconds: int


class SignIn:
    """Signs users in. Holds no connection while a password is verified: each step has its own."""

    def __init__(self, database: Database, tokens: Tokens, limits: SignInLimits) -> None:
        self._database = database
        self._tokens = tokens
        self._limits = limits

    @property
    def seconds(self) -> int:
        """For how long a token is good."""
        return self._tokens.seconds

    async def __call__(self, *, email: str, password: str, address: str) -> str:
        """An access token. Raises InvalidCredentials, TooManyAttempts.

        An unknown address, a wrong password and an inactive user take the same steps: a hash is verified in each.
        """
        account_subject = "account:" + sha256(email.lower().encode(errors="replace")).hexdigest()
        address_subject = f"address:{address}"[:80]
        await self._count(account_subject, address_subject)

        known = await UserReader(self._database.read).credentials(email)
        correct, better_hash = await verify_password(password, known.password_hash if known else None)
        if known is None or not correct or not known.is_active:
            raise InvalidCredentials

        async with self._database.write() as session:
            await AttemptRepository(session).forgive(account=account_subject, address=address_subject)
            if better_hash is not None:
                await UserRepository(session).replace_hash(known.id, old=known.password_hash, new=better_hash)
        return self._tokens.issue(known.id)

    async def _count(self, account: str, address: str) -> None:
        """Count the attempt before the password is looked at: attempts that arrive together are all counted."""
        now = datetime.now(UTC)
        window = timedelta(seconds=self._limits.window_seconds)
        async with self._database.write() as session:
            attempts = AttemptRepository(session)
            counted = await attempts.count([account, address], now=now, window=window)
            await attempts.sweep(now)
        limits = ((account, self._limits.per_account), (address, self._limits.per_address))
        for subject, limit in limits:
            if counted[subject].attempts > limit:
                raise TooManyAttempts(max(1, ceil((counted[subject].expires_at - now).total_seconds())))


class Authenticator:
    """Knows who a token belongs to, and whether it still counts."""

    def __init__(self, database: Database, tokens: Tokens) -> None:
        self._database = database
        self._tokens = tokens

    async def __call__(self, token: str) -> Principal:
        """Asks the database each time, so a token ends with its user. Raises NotAuthenticated."""
        user = await UserReader(self._database.read).principal(self._tokens.user_id(token))
        if user is None:
            raise NotAuthenticated("The user of this token does not exist any more, or is not active.")
        return user
