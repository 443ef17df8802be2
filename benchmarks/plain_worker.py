"""The API's worker with uvicorn's own server and listener: what benchmarks/listener.py compares with."""

from uvicorn_worker import UvicornWorker

from app.server.worker import worker_class
from app.settings import load_settings


class PlainWorker(worker_class(load_settings())):  # type: ignore[misc]  # a base class that depends on the settings
    """The same options and the same HTTP protocol, without FairServer."""

    _serve = UvicornWorker._serve
