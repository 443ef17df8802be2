"""Password hashes: Argon2id with pwdlib's recommended parameters.

A hash takes tens of milliseconds and 64 MiB by design. A worker computes at most two at a time, in threads, so hashing
takes at most 128 MiB and does not block the event loop. Sign-ins and new passwords have one queue with one thread each:
sign-ups, which are open to anyone, cannot delay sign-ins.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError

from app.errors import ServerBusy
from app.request_deadline import uninterrupted

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

_password_hash = PasswordHash.recommended()
# Verified for unknown addresses. Computed at import, before Gunicorn forks, so that the first one takes no longer.
_DUMMY_HASH = _password_hash.hash(os.urandom(16))
_UNLIMITED = CapacityLimiter(math.inf)  # a HashQueue has its own limit


class HashQueue:
    """At most `capacity` requests of a worker that hash a password or wait for it. `thread` runs one at a time."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.thread = CapacityLimiter(1)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot of the queue. Raise ServerBusy if there is none.

        Take it before anything that a refusal would have to undo.
        """
        if self.used >= self.capacity:
            raise ServerBusy(f"the password hash queue is full: {self.used} of {self.capacity} slots are in use")
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1


# At 50 ms per hash, the last sign-in waits 2.5 s, about as long as for a connection. A burst of sign-ups is served
# within 10 s instead of refused.
SIGN_IN_QUEUE = HashQueue(50)
NEW_PASSWORD_QUEUE = HashQueue(200)


class Verification(NamedTuple):
    """The result of verifying a password. `needs_rehash`: the hash has other parameters than a new one would have."""

    is_correct: bool
    needs_rehash: bool = False


async def hash_password(password: str, queue: HashQueue = NEW_PASSWORD_QUEUE) -> str:
    """Return the hash of a password, computed in the thread of `queue`."""
    return await _in_thread(queue, _password_hash.hash, password)


async def verify_password(password: str, known_hash: str | None) -> Verification:
    """Verify a password. Without a hash, it is incorrect and takes as long: timing must not reveal accounts."""
    return await _in_thread(SIGN_IN_QUEUE, _verify, password, known_hash)


async def _in_thread(queue: HashQueue, call: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call the function in the thread of the queue. A deadline may end the wait for the thread, not the call."""
    async with queue.thread:
        with uninterrupted():
            return await to_thread.run_sync(call, *arguments, limiter=_UNLIMITED)


def _verify(password: str, known_hash: str | None) -> Verification:
    stored = known_hash or _DUMMY_HASH
    try:
        is_correct = _password_hash.verify(password, stored) and known_hash is not None
    except UnicodeEncodeError:  # an unpaired surrogate: no user has this password, but it must take as long
        _password_hash.verify("", _DUMMY_HASH)
        return Verification(is_correct=False)
    except UnknownHashError:
        return Verification(is_correct=False, needs_rehash=True)
    return Verification(is_correct, _password_hash.current_hasher.check_needs_rehash(stored))
