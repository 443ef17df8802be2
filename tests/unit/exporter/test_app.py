import importlib
import inspect
import re
import socket
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import uvicorn
from httpx import ASGITransport, AsyncClient

from app.exporter.app import create_exporter, serve
from app.paths import PROJECT_ROOT
from app.settings import Settings

COLLECTORS = PROJECT_ROOT / "app/exporter/collectors"


@pytest.fixture
async def exporter(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """An exporter without a database and without an API."""
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
async def test_metrics_have_the_accepted_format(exporter: AsyncClient, accept: str, content_type: str) -> None:
    answer = await exporter.get("/metrics", headers={"accept": accept})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(content_type)
    assert 'headroom_collector_success{collector="replicas"} 1.0' in answer.text


async def test_budget_without_a_database_comes_from_the_settings(exporter: AsyncClient) -> None:
    text = (await exporter.get("/metrics")).text

    assert 'db_budget_demand{limit="server connections"} 64.0' in text
    assert 'db_budget_headroom{limit="server connections"} 33.0' in text


@pytest.mark.parametrize(
    ("scope", "console", "collectors"),
    [
        ("node", "on", {"replicas"}),
        ("server", "on", {"server", "migrations", "archive", "backups", "pgbouncer", "budget"}),
        ("server", "off", {"server", "migrations", "archive", "backups", "budget"}),
        ("all", "on", {"replicas", "server", "migrations", "archive", "backups", "pgbouncer", "budget"}),
    ],
)
async def test_scope_selects_the_collectors(tmp_path: Path, scope: str, console: str, collectors: set[str]) -> None:
    """On several machines, one exporter reports the server, and each machine has one that reports its replicas."""
    nowhere = "postgresql://monitor@127.0.0.1:1/headroom"
    app = create_exporter(
        Settings.model_validate(
            {
                "metrics_dir": tmp_path,
                "backup_status_dir": tmp_path,
                "exporter_database_url": nowhere,
                "pgbouncer_admin_url": nowhere,
                "exporter_scope": scope,
                "db_pooler": "pgbouncer",
                "pgbouncer_console": console,
            }
        )
    )
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        text = (await client.get("/metrics")).text

    assert set(re.findall(r'headroom_collector_success\{collector="(\w+)"\}', text)) == collectors
    assert ("db_budget_supply" in text) == (scope != "node")


async def test_healthz_answers_ok(exporter: AsyncClient) -> None:
    assert (await exporter.get("/healthz")).text == "ok\n"


async def test_page_loads_nothing_from_other_hosts(exporter: AsyncClient) -> None:
    page = await exporter.get("/")

    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "http" not in page.text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


async def test_page_names_only_files_that_are_served(exporter: AsyncClient) -> None:
    files = re.findall(r'(?:href|src)="(static/[^"]+)"', (await exporter.get("/")).text)

    assert {Path(file).suffix for file in files} == {".css", ".js", ".svg"}
    for file in files:
        assert (await exporter.get(f"/{file}")).status_code == 200


@pytest.mark.parametrize("name", sorted(path.stem for path in COLLECTORS.glob("[!_]*.py")))
def test_collector_module_is_registered_and_tested(name: str) -> None:
    module = importlib.import_module(f"app.exporter.collectors.{name}")
    [collector] = [
        value for value in vars(module).values() if inspect.isclass(value) and getattr(value, "name", None) == name
    ]

    assert f"{collector.__name__}(" in inspect.getsource(create_exporter)
    assert list(PROJECT_ROOT.glob(f"tests/*/exporter/collectors/test_{name}.py"))


def test_exporter_starts_with_an_empty_number_of_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty variable counts as not set, but Uvicorn reads it as a number."""
    monkeypatch.setenv("WEB_CONCURRENCY", "")
    started: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: started.append(server.config))
    monkeypatch.setattr(socket, "create_server", lambda address: nullcontext())

    serve(Settings(metrics_dir=tmp_path, data_dir=tmp_path))

    assert [config.workers for config in started] == [1]
