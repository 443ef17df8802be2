"""The exporter's HTTP server: `/metrics` for Prometheus, `/` for people, `/healthz` for health checks."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from prometheus_client.exposition import choose_encoder
from sqlalchemy import URL
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from app.database.admin_connection import AdminConnection
from app.exporter.collectors.archive import ArchiveCollector
from app.exporter.collectors.backups import BackupsCollector
from app.exporter.collectors.budget import BudgetCollector
from app.exporter.collectors.migrations import MigrationsCollector
from app.exporter.collectors.pgbouncer import PgBouncerCollector
from app.exporter.collectors.replicas import ReplicasCollector
from app.exporter.collectors.server import ServerCollector
from app.exporter.scraper import Collector, Scraper
from app.exporter.status.live_status import LiveStatus
from app.settings import Settings

STATIC = Path(__file__).parent / "static"
# Of the page itself: it loads only the exporter's own files, cannot be framed, and sends no referrer.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
STOP_SECONDS = 2


def create_exporter(settings: Settings) -> Starlette:
    """Return the application. Its lifespan updates the live status in the background."""
    scope = settings.exporter_scope
    of_server = scope != "node"
    server = _admin_connection(settings.known_exporter_database_url()) if of_server else None
    console = _admin_connection(settings.known_pgbouncer_admin_url()) if of_server else None
    budget = BudgetCollector(settings, server, console)
    # Every collector, and when it runs. app/exporter/collectors/__init__.py says how to add one.
    collectors: list[Collector | None] = [
        ReplicasCollector(settings.metrics_dir) if scope != "server" else None,
        ServerCollector(server) if server else None,
        MigrationsCollector(server) if server else None,
        ArchiveCollector(server) if server else None,
        BackupsCollector(settings.backup_status_dir) if of_server and settings.backup_status_dir else None,
        PgBouncerCollector(console) if console else None,
        budget if of_server else None,
    ]
    scraper = Scraper([collector for collector in collectors if collector], settings.exporter_deadline)
    live_status = LiveStatus(scraper, budget)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        updates = asyncio.create_task(live_status.run(), name="live status")
        try:
            yield
        finally:
            updates.cancel()
            with suppress(asyncio.CancelledError):
                await updates
            await scraper.close()
            for connection in (server, console):
                if connection:
                    await connection.close()

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await scraper.scrape()), headers={"content-type": content_type})

    async def status_document(request: Request) -> Response:
        return JSONResponse(live_status.document, headers={"cache-control": "no-store"})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            *page_routes(),
            Route("/live.json", status_document),
            Route("/metrics", metrics),
            Route("/healthz", healthz),
        ],
        lifespan=lifespan,
    )


def page_routes() -> list[BaseRoute]:
    """Return the routes of the live page and its static files."""

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    return [Route("/", page), Mount("/static", StaticFiles(directory=STATIC))]


def _admin_connection(url: URL | None) -> AdminConnection | None:
    """Return a connection that is opened by its first query; None if the URL is missing or not PostgreSQL's."""
    if url is None or url.get_backend_name() != "postgresql":
        return None
    return AdminConnection(url, application_name="headroom:exporter")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raise OSError if the address is in use or invalid."""
    with socket.create_server((settings.exporter_host, settings.exporter_port)) as listener:
        config = uvicorn.Config(
            create_exporter(settings),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            workers=1,  # otherwise Uvicorn reads WEB_CONCURRENCY, which may be empty
        )
        uvicorn.Server(config).run(sockets=[listener])
