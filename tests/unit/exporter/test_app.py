from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from app.exporter.app import create_exporter
from app.settings import Settings


@pytest.fixture
async def exporter(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """One that knows no database, and no API."""
    app = create_exporter(Settings(metrics_dir=tmp_path, data_dir=tmp_path))
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
    ],
)
async def test_metrics_speak_the_format_that_is_asked_for(
    exporter: AsyncClient, accept: str, content_type: str
) -> None:
    answer = await exporter.get("/metrics", headers={"accept": accept})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(content_type)
    assert 'headroom_collector_success{collector="replicas"} 1.0' in answer.text


async def test_the_budget_is_there_before_anything_else_is(exporter: AsyncClient) -> None:
    text = (await exporter.get("/metrics")).text

    assert 'db_budget_demand{limit="server connections"} 64.0' in text
    assert 'db_budget_headroom{limit="server connections"} 33.0' in text


async def test_it_says_that_it_is_healthy(exporter: AsyncClient) -> None:
    assert (await exporter.get("/healthz")).text == "ok\n"


async def test_the_page_needs_nothing_but_the_exporter(exporter: AsyncClient) -> None:
    page = await exporter.get("/")

    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "http" not in page.text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
