"""Which proxies may say where a request comes from."""

from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from tests.support.postgres import as_role
from tests.support.serving import gunicorn


@pytest.mark.parametrize(
    ("trusted", "address"), [("", "127.0.0.1"), ("127.0.0.1", "203.0.113.7"), ("10.0.0.0/8,127.0.0.0/8", "203.0.113.7")]
)
def test_forwarded_address_counts_only_from_a_trusted_proxy(
    database: URL, tmp_path: Path, trusted: str, address: str
) -> None:
    settings = {"FORWARDED_ALLOW_IPS": trusted, "WEB_CONCURRENCY": "1"}
    with gunicorn("tests.support.holding:create()", as_role(database, "headroom_app"), tmp_path, **settings) as served:
        answer = httpx.get(f"{served.address}/client", headers={"x-forwarded-for": "203.0.113.7"}, timeout=30)

    assert answer.json() == address
