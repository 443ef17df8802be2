"""Password hashes: Argon2id with pwdlib's recommended parameters."""

import asyncio

from pwdlib import PasswordHash

_argon2 = PasswordHash.recommended()


async def hash_password(password: str) -> str:
    """Tens of milliseconds and 64 MiB by design, so in a thread: the event loop goes on serving."""
    return await asyncio.to_thread(_argon2.hash, password)
