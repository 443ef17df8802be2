"""Access tokens, and the time."""

import jwt
import pytest

from app.domains.auth import tokens as module
from app.domains.auth.tokens import ALGORITHM, Tokens
from app.errors import NotAuthenticated

KEY = "for tests only, for tests only, for tests only"


def test_a_token_that_was_good_before_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(KEY, seconds=60)
    token = tokens.issue(7)
    assert [tokens.user_id(token), tokens.user_id(token)] == [7, 7]
    expires_at = jwt.decode(token, KEY, [ALGORITHM], audience=module.AUDIENCE)["exp"]

    monkeypatch.setattr(module, "time", lambda: expires_at - 1)
    assert tokens.user_id(token) == 7
    monkeypatch.setattr(module, "time", lambda: expires_at)
    with pytest.raises(NotAuthenticated):
        tokens.user_id(token)


def test_a_token_that_is_not_good_is_refused_each_time() -> None:
    tokens = Tokens(KEY, seconds=60)
    forged = Tokens(KEY[::-1], seconds=60).issue(7)

    for _ in range(2):
        with pytest.raises(NotAuthenticated):
            tokens.user_id(forged)


def test_no_more_tokens_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    tokens = Tokens(KEY, seconds=60)

    issued = [tokens.issue(user_id) for user_id in (1, 2, 3)]

    assert [tokens.user_id(token) for token in (*issued, *issued)] == [1, 2, 3, 1, 2, 3]
    assert tokens._verified.cache_info().currsize == 2
