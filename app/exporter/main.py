"""The exporter's HTTP side: `/metrics` for Prometheus, `/healthz` for whoever started it."""

import socket
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.exporter.replicas import ReplicaCollector


def create_exporter(metrics_dir: Path) -> Starlette:
    registry = CollectorRegistry()
    registry.register(ReplicaCollector(metrics_dir))

    def metrics(request: Request) -> Response:  # not async: it reads files, so it runs in a thread
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz)])


def serve(*, metrics_dir: Path, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError where the address cannot be had."""
    with socket.create_server((host, port)) as listener:
        config = uvicorn.Config(
            create_exporter(metrics_dir), log_config=None, access_log=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listener])
