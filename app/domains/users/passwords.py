"""Password hashes: Argon2id with pwdlib's recommended parameters.

A hash takes tens of milliseconds and 64 MiB by design. It is made in a thread, so the event loop goes on serving, and
by two threads at the most, so a wave of sign-ins takes 128 MiB of a worker and not all there is.
"""

import os
from functools import cache, partial

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError

_argon2 = PasswordHash.recommended()
_threads = CapacityLimiter(2)


async def hash_password(password: str) -> str:
    return await to_thread.run_sync(_argon2.hash, password, limiter=_threads)


async def verify_password(password: str, known_hash: str | None) -> tuple[bool, str | None]:
    """Whether the password has this hash, and a better hash of it where the parameters have moved on.

    Takes as long without a hash: who asks must not learn from the clock whether there is one.
    """
    return await to_thread.run_sync(partial(_verify, password, known_hash), limiter=_threads)


def _verify(password: str, known_hash: str | None) -> tuple[bool, str | None]:
    try:
        correct, better_hash = _argon2.verify_and_update(password, known_hash or _nobodys_hash())
    except (UnknownHashError, UnicodeEncodeError):
        return False, None
    return correct and known_hash is not None, better_hash


@cache
def _nobodys_hash() -> str:
    return _argon2.hash(os.urandom(16))
