"""FastAPI dependencies that say who is calling. `app/main.py` provides the Authenticator of the auth domain."""

from typing import Annotated, Protocol

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from app.errors import NotAuthenticated
from app.identity import Claim, Principal


class Authenticator(Protocol):
    """Verifies access tokens. Both methods raise NotAuthenticated for an invalid or expired one."""

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
