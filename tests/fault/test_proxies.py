"""Which proxies may say where a request comes from."""

from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from tests.support.postgres import as_role, connect
from tests.support.serving import gunicorn


@pytest.mark.parametrize(
    ("trusted", "address"), [("", "127.0.0.1"), ("127.0.0.1", "203.0.113.7"), ("10.0.0.0/8,127.0.0.0/8", "203.0.113.7")]
)
def test_forwarded_address_counts_only_from_a_trusted_proxy(
    database: URL, tmp_path: Path, trusted: str, address: str
) -> None:
    settings = {"FORWARDED_ALLOW_IPS": trusted, "WEB_CONCURRENCY": "1"}
    with gunicorn("app.main:create_app()", as_role(database, "headroom_app"), tmp_path, **settings) as served:
        httpx.post(
            f"{served.address}/auth/token",
            data={"username": "nobody@example.com", "password": "wrong horse"},
            headers={"x-forwarded-for": "203.0.113.7"},
            timeout=30,
        )
    with connect(database) as connection:
        row = connection.execute(
            "DELETE FROM sign_in_attempts WHERE subject LIKE 'address:%' RETURNING subject"
        ).fetchone()

    assert row == (f"address:{address}",)
