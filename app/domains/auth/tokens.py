"""Access tokens: signed JSON Web Tokens that name a user."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from time import time
from typing import Any

import jwt

from app.errors import NotAuthenticated
from app.fields import BIGINT_MAX

# Pinned: a token must not choose the algorithm that verifies it.
ALGORITHM = "HS256"
ISSUER = "headroom"
AUDIENCE = "headroom-api"
REQUIRED_CLAIMS = ["sub", "iat", "exp", "iss", "aud"]
# A token of another machine may have been issued in the future of this machine's clock. Its expiry has no leeway.
CLOCK_LEEWAY_SECONDS = 60
# Verified tokens that a worker caches, half a kilobyte each. A verification takes 34 us.
CACHE_SIZE = 4_096


class Tokens:
    """Issues and verifies access tokens with a lifetime of `seconds`.

    Tokens that were signed with one of the keys `fallbacks` are valid too.
    """

    def __init__(self, secret_key: str, seconds: int, fallbacks: Sequence[str] = ()) -> None:
        self._key = secret_key
        self._keys = (secret_key, *fallbacks)
        self.seconds = seconds
        # Caches valid tokens only: lru_cache does not store exceptions.
        self._verified = lru_cache(CACHE_SIZE)(self._verify)

    def issue(self, user_id: int) -> str:
        """Return a new token for a user."""
        now = int(time())
        claims = {"sub": str(user_id), "iat": now, "exp": now + self.seconds, "iss": ISSUER, "aud": AUDIENCE}
        return jwt.encode(claims, self._key, ALGORITHM)

    def user_id(self, token: str) -> int:
        """Return the id of the token's user. Raise NotAuthenticated if the token is invalid or has expired."""
        user_id, expires_at = self._verified(token)
        if expires_at <= time():  # a cached token can expire
            raise _invalid()
        return user_id

    def _verify(self, token: str) -> tuple[int, int]:
        """Return the user id and the expiry (Unix time) of a valid token. Raise NotAuthenticated."""
        try:
            claims = self._claims(token)
            user_id = int(claims["sub"])
        except (jwt.InvalidTokenError, ValueError):
            user_id = 0
        if not 1 <= user_id <= BIGINT_MAX:
            raise _invalid()
        return user_id, int(claims["exp"])

    def _claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a valid token. Raise InvalidTokenError."""
        for key in self._keys:
            with suppress(jwt.InvalidSignatureError):
                return jwt.decode(
                    token,
                    key,
                    algorithms=[ALGORITHM],
                    issuer=ISSUER,
                    audience=AUDIENCE,
                    leeway=CLOCK_LEEWAY_SECONDS,
                    options={"require": REQUIRED_CLAIMS},
                )
        raise jwt.InvalidSignatureError


def _invalid() -> NotAuthenticated:
    return NotAuthenticated("The access token is invalid or has expired.")
