from pathlib import Path

import httpx
from sqlalchemy import URL

from tests.support.serving import holding_api


def test_log_of_a_stopped_worker_has_its_last_lines(database_url: URL, tmp_path: Path) -> None:
    with holding_api(database_url, tmp_path, LOG_LEVEL="info", LOG_FORMAT="console", WEB_CONCURRENCY="1") as api:
        httpx.get(f"{api}/hold?ms=0")
    [log] = tmp_path.glob("*.log")

    text = log.read_text()
    assert "GET /hold" in text
    assert "Finished server process" in text
