"""Whose word counts about where a request comes from."""

from pathlib import Path

import httpx
import pytest

from tests.support.postgres import connect
from tests.support.stacks import LocalStack


@pytest.mark.parametrize(("trusted", "address"), [("", "127.0.0.1"), ("127.0.0.1", "203.0.113.7")])
def test_a_forwarded_address_counts_only_from_a_configured_proxy(tmp_path: Path, trusted: str, address: str) -> None:
    with LocalStack(tmp_path, FORWARDED_ALLOW_IPS=trusted, WEB_CONCURRENCY="1").running() as local:
        httpx.post(
            f"{local.api}/auth/token",
            data={"username": "nobody@example.com", "password": "wrong horse"},
            headers={"x-forwarded-for": "203.0.113.7"},
            timeout=30,
        )
        with connect(local.database_url()) as connection:
            row = connection.execute("SELECT subject FROM sign_in_attempts WHERE subject LIKE 'address:%'").fetchone()

    assert row == (f"address:{address}",)
