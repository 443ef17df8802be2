"""Sign-in, its limits, and the users behind access tokens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Network, ip_address
from math import ceil
from time import monotonic
from typing import NamedTuple

from anyio import CapacityLimiter

from app.database import Database, WriteSession
from app.database.deadline import after_waiting
from app.domains.auth.errors import InvalidCredentials
from app.domains.auth.repository import AttemptRepository
from app.domains.auth.tokens import Tokens
from app.domains.users.passwords import SIGN_IN_QUEUE, hash_password, verify_password
from app.domains.users.repository import Credentials, UserReader, UserRepository
from app.errors import ServerBusy, TooManyAttempts
from app.identity import Claim, Principal

# Sign-ins of one client wait for one row. The lane critical has no limit, so without this one they could hold every
# connection of a worker. Two are enough: the thread that verifies hashes is much slower.
MAX_TRANSACTIONS = 2
# As long as a checkout waits by default.
TRANSACTION_WAIT_SECONDS = 3.0


class SignInLimits(NamedTuple):
    """Failed sign-ins that are allowed within `window_seconds`, per account and per client address."""

    per_account: int
    per_address: int
    window_seconds: int


class SignIn:
    """Signs users in (docs/decisions/0012-sign-in-limits.md).

    It takes two transactions, before and after the password is verified. No connection is held in between.
    """

    def __init__(self, database: Database, tokens: Tokens, limits: SignInLimits) -> None:
        self._database = database
        self._tokens = tokens
        self._limits = limits
        self._transactions = CapacityLimiter(MAX_TRANSACTIONS)

    @property
    def token_seconds(self) -> int:
        """Return the lifetime of an access token, in seconds."""
        return self._tokens.seconds

    async def __call__(self, *, email: str, password: str, address: str) -> str:
        """Return an access token. Raise InvalidCredentials, TooManyAttempts, ServerBusy.

        Every attempt verifies a hash: an unknown address, a wrong password and an inactive user take the same time.
        """
        address_subject = f"address:{_network(address)}"
        # Before the attempt is counted: a request that finds the queue full is not a failed sign-in.
        with SIGN_IN_QUEUE.slot():
            user = await self._count_attempt(address_subject, email)
            is_correct, needs_rehash = await verify_password(password, user.password_hash)
            if user.id is None or user.password_hash is None or not is_correct or not user.is_active:
                if needs_rehash:  # take as long as a success, which computes a new hash
                    await verify_password(password, None)
                raise InvalidCredentials
            new_hash = await hash_password(password, SIGN_IN_QUEUE) if needs_rehash else None

        async with self._transaction() as session:
            await AttemptRepository(session).record_success(account=_account_subject(user), address=address_subject)
            if new_hash is not None:
                await UserRepository(session).replace_hash(user.id, old=user.password_hash, new=new_hash)
        return self._tokens.issue(user.id)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[WriteSession]:
        """Run a transaction, at most MAX_TRANSACTIONS at a time in this worker. Raise ServerBusy."""
        began = monotonic()
        try:
            async with asyncio.timeout(TRANSACTION_WAIT_SECONDS):
                await self._transactions.acquire()
        except TimeoutError:
            reason = f"{MAX_TRANSACTIONS} sign-ins are being counted, for {TRANSACTION_WAIT_SECONDS:g} s"
            raise ServerBusy(reason) from None
        try:
            with after_waiting(monotonic() - began):
                async with self._database.write() as session:
                    yield session
        finally:
            self._transactions.release()

    async def _count_attempt(self, address_subject: str, email: str) -> Credentials:
        """Count the attempt and return the credentials to verify. Raise TooManyAttempts.

        The attempt is counted before the password is verified, so the limits hold for concurrent attempts. A client
        address over its limit cannot use up the attempts of an account.
        """
        now = datetime.now(UTC)
        window = timedelta(seconds=self._limits.window_seconds)
        async with self._transaction() as session:
            attempts = AttemptRepository(session)
            counted, limit = await attempts.add(address_subject, now=now, window=window), self._limits.per_address
            if counted.attempts <= limit:
                user = await UserRepository(session).credentials(email)
                account = _account_subject(user)
                counted, limit = await attempts.add(account, now=now, window=window), self._limits.per_account
            await attempts.delete_expired(now)
        if counted.attempts > limit:
            raise TooManyAttempts(max(1, ceil((counted.expires_at - now).total_seconds())))
        return user


def _account_subject(user: Credentials) -> str:
    # Of the e-mail address, not of the id: counting must not tell whether the address has an account.
    return "account:" + sha256(user.folded_email.encode(errors="replace")).hexdigest()


def _network(address: str) -> str:
    """Return the part of a client address that identifies the client. For IPv6 that is the /64 network."""
    try:
        parsed = ip_address(address)
    except ValueError:  # not TCP
        return address[:64]
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False))


class Authenticator:
    """Identifies the user of an access token. Implements `app.web.auth.TokenVerifier`."""

    def __init__(self, database: Database, tokens: Tokens) -> None:
        # Not on a standby: the user may have been deactivated a moment ago.
        self._users = UserReader(database.primary_read)
        self._tokens = tokens

    def claim(self, token: str) -> Claim:
        """Return the user id that a valid token names. Raise NotAuthenticated."""
        return Claim(self._tokens.user_id(token))

    async def principal(self, claim: Claim) -> Principal:
        """Return the active user of a claim. Raise NotAuthenticated if the user was deleted or deactivated."""
        return await self._users.principal(claim)
