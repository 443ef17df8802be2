from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from app.exporter.main import create_exporter


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
    ],
)
async def test_metrics_speak_the_format_that_is_asked_for(tmp_path: Path, accept: str, content_type: str) -> None:
    transport = ASGITransport(create_exporter(tmp_path))
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/metrics", headers={"accept": accept})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(content_type)


async def test_it_says_that_it_is_healthy(tmp_path: Path) -> None:
    async with AsyncClient(transport=ASGITransport(create_exporter(tmp_path)), base_url="http://test") as client:
        assert (await client.get("/healthz")).text == "ok\n"
