"""Workers with uvicorn's own server and listener: what benchmarks/listener.py compares with."""

from uvicorn_worker import UvicornWorker

from app.server.worker import worker_class
from app.settings import load_settings


class PlainWorker(UvicornWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Uvicorn's worker with its own HTTP protocol, and as few headers and log lines as the API's worker."""

    CONFIG_KWARGS = {  # noqa: RUF012
        **UvicornWorker.CONFIG_KWARGS,
        "loop": "uvloop",
        "http": "httptools",
        "server_header": False,
        "proxy_headers": False,
    }


class PlainListenerWorker(worker_class(load_settings())):  # type: ignore[misc]  # a base class from the settings
    """The API's worker with its own HTTP protocol, without FairServer."""

    _serve = UvicornWorker._serve
