"""FastAPI dependencies for the caller's identity. `app/main.py` sets the TokenVerifier on `app.state`."""

from typing import Annotated, Protocol

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from app.errors import NotAuthenticated
from app.identity import Claim, Principal
from app.web.deps import provided


class TokenVerifier(Protocol):
    """Verifies access tokens. The auth domain implements it, because this layer cannot import a domain."""

    def claim(self, token: str) -> Claim:
        """Return the token's claim without a database query. Raise NotAuthenticated."""

    async def principal(self, claim: Claim) -> Principal:
        """Return the active user that the claim names. Raise NotAuthenticated."""


_bearer = OAuth2PasswordBearer(tokenUrl="/auth/token", auto_error=False)


async def _get_claim(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> Claim:
    if token is None:
        raise NotAuthenticated
    verifier: TokenVerifier = provided(request, "authenticator")
    return verifier.claim(token)


Claimed = Annotated[Claim, Depends(_get_claim)]


async def _get_principal(request: Request, claim: Claimed) -> Principal:
    verifier: TokenVerifier = provided(request, "authenticator")
    return await verifier.principal(claim)


SignedIn = Annotated[Principal, Depends(_get_principal)]
