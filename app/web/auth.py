"""Who asks. A router says what it needs to know; the auth domain finds it out (`app/main.py` introduces the two)."""

from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from app.errors import Forbidden, NotAuthenticated


class Principal(NamedTuple):
    """The active user whose token came with the request."""

    id: int
    name: str
    is_admin: bool

    def require_admin(self) -> None:
        """Raises Forbidden."""
        if not self.is_admin:
            raise Forbidden("Only an administrator may do this.")

    def require_self_or_admin(self, user_id: int) -> None:
        """Raises Forbidden."""
        if self.id != user_id and not self.is_admin:
            raise Forbidden("Only the user or an administrator may do this.")


# Raises NotAuthenticated for a token that is not good, or no longer.
Authenticate = Callable[[str], Awaitable[Principal]]

_bearer = OAuth2PasswordBearer(tokenUrl="/auth/token", auto_error=False)


async def _signed_in(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> Principal:
    if token is None:
        raise NotAuthenticated
    authenticate: Authenticate = request.app.state.authenticate
    return await authenticate(token)


SignedIn = Annotated[Principal, Depends(_signed_in)]
