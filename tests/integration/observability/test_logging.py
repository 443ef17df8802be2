"""The log of an API that is stopped."""

from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from tests.support.serving import holding_api


@pytest.fixture
def way() -> str:
    return "asyncpg"


def test_the_last_lines_of_a_worker_that_is_stopped_are_in_the_log(database_url: URL, tmp_path: Path) -> None:
    with holding_api(database_url, tmp_path, LOG_LEVEL="info", LOG_FORMAT="console", WEB_CONCURRENCY="1") as api:
        httpx.get(f"{api}/hold?ms=0")
    [log] = tmp_path.glob("*.log")

    text = log.read_text()
    assert "GET /hold" in text
    assert "Finished server process" in text
