"""Password hashes: Argon2id with pwdlib's recommended parameters.

A hash takes tens of milliseconds and 64 MiB by design. It is made in a thread, so the event loop goes on serving, and
by two threads at the most, so a wave of sign-ins takes 128 MiB of a worker and not all there is.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError

from app.errors import ServerBusy

Result = TypeVar("Result")

_argon2 = PasswordHash.recommended()
_threads = CapacityLimiter(2)
# A second of work for the two. Signing up is open to everyone: without an end to the queue, who signs in would wait for
# as long as somebody keeps signing up.
MAX_WAITING = 40
# Made when the module is imported, before Gunicorn forks: the first unknown address must not take longer than the rest.
_NOBODYS = _argon2.hash(os.urandom(16))


class Verdict(NamedTuple):
    """Whether the password has the hash, and whether that hash should be made anew, with today's parameters."""

    correct: bool
    outdated: bool = False


async def hash_password(password: str) -> str:
    """Raises ServerBusy."""
    return await _in_thread(partial(_argon2.hash, password))


async def verify_password(password: str, known_hash: str | None) -> Verdict:
    """Takes as long without a hash: who asks must not learn from the clock whether there is one. Raises ServerBusy."""
    return await _in_thread(partial(_verify, password, known_hash))


async def _in_thread(work: Callable[[], Result]) -> Result:
    waiting = _threads.statistics().tasks_waiting
    if waiting >= MAX_WAITING:
        raise ServerBusy(f"{waiting} passwords wait to be hashed")
    return await to_thread.run_sync(work, limiter=_threads)


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
