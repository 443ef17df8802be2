"""Fixtures for password hashes, which take 0.1 s by design. tests/integration/conftest.py loads them."""

from collections.abc import Iterator

import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app.domains.users import passwords


@pytest.fixture(scope="session", autouse=True)
def deployed_hashing() -> Iterator[dict[str, object]]:
    """Replace the password hash, which takes 0.1 s by design, with a fast one; return what it replaced.

    The result maps names of the module `passwords` to their values in production.
    """
    deployed = {name: getattr(passwords, name) for name in ("_password_hash", "_DUMMY_HASH")}
    fast = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_password_hash", fast)
        patch.setattr(passwords, "_DUMMY_HASH", fast.hash("no password"))
        yield deployed


@pytest.fixture
def real_hashes(deployed_hashing: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords with the parameters of production."""
    for name, value in deployed_hashing.items():
        monkeypatch.setattr(passwords, name, value)
