"""Who asks. A router says what it needs to know; the auth domain finds it out (`app/main.py` introduces the two)."""

from typing import Annotated, NamedTuple, Protocol

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from app.errors import Forbidden, NotAuthenticated


class Claim(NamedTuple):
    """What the token that came with the request says, and nothing else.

    Whether its user is still there, and active, is for the statement to ask that makes use of it: that takes one round
    trip to the database, where a Principal takes one more.
    """

    user_id: int


class Principal(NamedTuple):
    """The active user whose token came with the request."""

    id: int
    is_admin: bool

    def require_admin(self) -> None:
        """Raises Forbidden."""
        if not self.is_admin:
            raise Forbidden("Only an administrator may do this.")

    def require_self_or_admin(self, user_id: int) -> None:
        """Raises Forbidden."""
        if self.id != user_id and not self.is_admin:
            raise Forbidden("Only the user or an administrator may do this.")


class Authenticator(Protocol):
    """Each raises NotAuthenticated for what is not good, or no longer."""

    def claim(self, token: str) -> Claim: ...
    async def principal(self, claim: Claim) -> Principal: ...


_bearer = OAuth2PasswordBearer(tokenUrl="/auth/token", auto_error=False)


async def _claimed(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> Claim:
    if token is None:
        raise NotAuthenticated
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator.claim(token)


Claimed = Annotated[Claim, Depends(_claimed)]


async def _signed_in(request: Request, claim: Claimed) -> Principal:
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.principal(claim)


SignedIn = Annotated[Principal, Depends(_signed_in)]
