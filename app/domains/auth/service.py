from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Network, ip_address
from math import ceil
from typing import NamedTuple

from app.database import Database
from app.domains.auth.errors import InvalidCredentials
from app.domains.auth.repository import AttemptRepository
from app.domains.auth.tokens import Tokens
from app.domains.users.passwords import SIGNING_IN, hash_password, verify_password
from app.domains.users.repository import Credentials, UserReader, UserRepository
from app.errors import TooManyAttempts
from app.identity import Claim, Principal


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
        """An access token. Raises InvalidCredentials, TooManyAttempts, ServerBusy.

        An unknown address, a wrong password and an inactive user take the same steps: a hash is verified in each.
        """
        address_subject = f"address:{_network(address)}"
        # Before the attempt is counted: being turned away for want of a place is no failed sign-in.
        with SIGNING_IN.place():
            known = await self._count(address_subject, email)
            correct, outdated = await verify_password(password, known.password_hash)
            if known.id is None or known.password_hash is None or not correct or not known.is_active:
                if outdated:  # it was cheaper to verify: spend what a success spends on the new one
                    await verify_password(password, None)
                raise InvalidCredentials
            better_hash = await hash_password(password, SIGNING_IN) if outdated else None

        async with self._database.write() as session:
            await AttemptRepository(session).forgive(account=_account(known), address=address_subject)
            if better_hash is not None:
                await UserRepository(session).replace_hash(known.id, old=known.password_hash, new=better_hash)
        return self._tokens.issue(known.id)

    async def _count(self, address: str, email: str) -> Credentials:
        """Count the attempt before the password is looked at: attempts that arrive together are all counted.

        An address that has used up its own attempts cannot use up those of other people's accounts.
        """
        now = datetime.now(UTC)
        window = timedelta(seconds=self._limits.window_seconds)
        async with self._database.write() as session:
            attempts = AttemptRepository(session)
            counted, limit = await attempts.count(address, now=now, window=window), self._limits.per_address
            if counted.attempts <= limit:
                known = await UserRepository(session).credentials(email)
                counted, limit = await attempts.count(_account(known), now=now, window=window), self._limits.per_account
            await attempts.sweep(now)
        if counted.attempts > limit:
            raise TooManyAttempts(max(1, ceil((counted.expires_at - now).total_seconds())))
        return known


def _account(known: Credentials) -> str:
    # Of the address, not the id: an unknown one must count in the same way, or the count would tell which it is.
    return "account:" + sha256(known.folded.encode(errors="replace")).hexdigest()


def _network(address: str) -> str:
    """Whose address it is. A customer has 2**64 of IPv6, so those count as one."""
    try:
        parsed = ip_address(address)
    except ValueError:  # not TCP
        return address[:64]
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False))


class Authenticator:
    """Knows who a token belongs to, and whether it still counts."""

    def __init__(self, database: Database, tokens: Tokens) -> None:
        self._users = UserReader(database.read)
        self._tokens = tokens

    def claim(self, token: str) -> Claim:
        """Raises NotAuthenticated."""
        return Claim(self._tokens.user_id(token))

    async def principal(self, claim: Claim) -> Principal:
        """Asks the database each time, so a token ends with its user. Raises NotAuthenticated."""
        return await self._users.principal(claim)
