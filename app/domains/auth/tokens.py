"""Access tokens: signed statements of who somebody is, good until they expire."""

from time import time

import jwt

from app.errors import NotAuthenticated
from app.web.types import BIGINT_MAX

# Pinned: a token that names another algorithm, or none, is not ours.
ALGORITHM = "HS256"
ISSUER = "headroom"
AUDIENCE = "headroom-api"
REQUIRED = ["sub", "iat", "exp", "iss", "aud"]


class Tokens:
    """Issues and reads access tokens that are good for `seconds`."""

    def __init__(self, secret_key: str, seconds: int) -> None:
        self._key = secret_key
        self.seconds = seconds

    def issue(self, user_id: int) -> str:
        now = int(time())
        claims = {"sub": str(user_id), "iat": now, "exp": now + self.seconds, "iss": ISSUER, "aud": AUDIENCE}
        return jwt.encode(claims, self._key, ALGORITHM)

    def user_id(self, token: str) -> int:
        """Whose token it is. Raises NotAuthenticated for one that is expired, forged or for somebody else."""
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": REQUIRED},
            )
            user_id = int(claims["sub"])
        except (jwt.InvalidTokenError, ValueError):
            user_id = 0
        if not 1 <= user_id <= BIGINT_MAX:
            raise NotAuthenticated("The access token is invalid or has expired.")
        return user_id
