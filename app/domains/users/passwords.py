"""Password hashes: Argon2id with pwdlib's recommended parameters.

A hash takes tens of milliseconds and 64 MiB by design. It is made in a thread, so the event loop goes on serving, and
by two threads at the most, so a wave of sign-ins takes 128 MiB of a worker and not all there is. One of them is for
sign-ins alone: signing up is open to everyone, and nobody who signs in waits behind somebody who keeps signing up.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError

from app.errors import ServerBusy

_argon2 = PasswordHash.recommended()
# Made when the module is imported, before Gunicorn forks: the first unknown address must not take longer than the rest.
_NOBODYS = _argon2.hash(os.urandom(16))


class Queue:
    """A worker's requests that hash a password, or are about to: `places` of them at the most, one at a time."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self.thread = CapacityLimiter(1)

    @contextmanager
    def place(self) -> Iterator[None]:
        """To be taken before anything that would have to be undone. Raises ServerBusy."""
        if self.taken >= self.places:
            raise ServerBusy(f"{self.taken} requests wait for a password to be hashed")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


# With 50 ms a hash, the last one to sign in waits 2.5 s, about as long as one for a connection does. A wave of new
# users is rather served in 10 s than told to come back.
SIGNING_IN = Queue(50)
NEW_PASSWORDS = Queue(200)


class Verdict(NamedTuple):
    """Whether the password has the hash, and whether that hash should be made anew, with today's parameters."""

    correct: bool
    outdated: bool = False


async def hash_password(password: str, queue: Queue = NEW_PASSWORDS) -> str:
    return await to_thread.run_sync(_argon2.hash, password, limiter=queue.thread)


async def verify_password(password: str, known_hash: str | None) -> Verdict:
    """Takes as long without a hash: who asks must not learn from the clock whether there is one."""
    return await to_thread.run_sync(_verify, password, known_hash, limiter=SIGNING_IN.thread)


def _verify(password: str, known_hash: str | None) -> Verdict:
    stored = known_hash or _NOBODYS
    try:
        correct = _argon2.verify(password, stored) and known_hash is not None
    except UnicodeEncodeError:  # half a surrogate pair: nobody's password, and it takes as long
        _argon2.verify("", _NOBODYS)
        return Verdict(correct=False)
    except UnknownHashError:
        return Verdict(correct=False, outdated=True)
    return Verdict(correct, _argon2.current_hasher.check_needs_rehash(stored))
