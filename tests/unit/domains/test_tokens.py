"""Access tokens and their expiry."""

from time import time

import jwt
import pytest

from app.domains.auth import tokens as module
from app.domains.auth.tokens import ALGORITHM, Tokens
from app.errors import NotAuthenticated

KEY = "for tests only, for tests only, for tests only"


def test_verified_token_expires_in_the_cache_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(KEY, seconds=60)
    token = tokens.issue(7)
    assert [tokens.user_id(token), tokens.user_id(token)] == [7, 7]
    expires_at = jwt.decode(token, KEY, [ALGORITHM], audience=module.AUDIENCE)["exp"]

    monkeypatch.setattr(module, "time", lambda: expires_at - 1)
    assert tokens.user_id(token) == 7
    monkeypatch.setattr(module, "time", lambda: expires_at)
    with pytest.raises(NotAuthenticated):
        tokens.user_id(token)


def test_invalid_token_is_refused_each_time() -> None:
    tokens = Tokens(KEY, seconds=60)
    forged = Tokens(KEY[::-1], seconds=60).issue(7)

    for _ in range(2):
        with pytest.raises(NotAuthenticated):
            tokens.user_id(forged)


def test_token_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_SIZE", 2)
    tokens = Tokens(KEY, seconds=60)

    issued = [tokens.issue(user_id) for user_id in (1, 2, 3)]

    assert [tokens.user_id(token) for token in (*issued, *issued)] == [1, 2, 3, 1, 2, 3]
    assert tokens._verified.cache_info().currsize == 2


def test_token_of_another_accepted_key_is_valid() -> None:
    old, new = KEY, KEY[::-1]
    before, between, after = Tokens(old, 60, [new]), Tokens(new, 60, [old]), Tokens(new, 60)

    token = between.issue(7)
    assert [tokens.user_id(token) for tokens in (before, between, after)] == [7, 7, 7]
    assert between.user_id(before.issue(8)) == 8
    with pytest.raises(NotAuthenticated):
        after.user_id(before.issue(8))


def test_expired_token_of_another_accepted_key_is_refused() -> None:
    with pytest.raises(NotAuthenticated):
        Tokens(KEY[::-1], 60, [KEY]).user_id(Tokens(KEY, seconds=-1).issue(7))


def test_token_of_a_machine_with_a_faster_clock_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time()
    monkeypatch.setattr(module, "time", lambda: now + module.CLOCK_LEEWAY_SECONDS - 5)
    early = Tokens(KEY, seconds=600).issue(7)
    monkeypatch.setattr(module, "time", lambda: now + module.CLOCK_LEEWAY_SECONDS + 60)
    too_early = Tokens(KEY, seconds=600).issue(7)
    monkeypatch.undo()

    assert Tokens(KEY, seconds=600).user_id(early) == 7
    with pytest.raises(NotAuthenticated):
        Tokens(KEY, seconds=600).user_id(too_early)
