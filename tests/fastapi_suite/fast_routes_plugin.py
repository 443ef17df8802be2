"""pytest plugin: every FastAPI() of the suite has fast routes. Prints how many requests took them."""

from collections import Counter
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

from app.web import fast_routes
from app.web.fast_routes.plan import OperationPlan

requests: Counter[str] = Counter()

_init, _call, _respond = FastAPI.__init__, FastAPI.__call__, OperationPlan._respond


def _init_with_fast_routes(self: FastAPI, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    fast_routes.install(self)


async def _counted_call(self: FastAPI, scope: Scope, receive: Receive, send: Send) -> None:
    requests["all"] += scope["type"] == "http"
    await _call(self, scope, receive, send)


async def _counted_respond(self: OperationPlan, request: Request) -> Any:
    requests["fast"] += 1
    return await _respond(self, request)


FastAPI.__init__ = _init_with_fast_routes  # type: ignore[method-assign]
FastAPI.__call__ = _counted_call  # type: ignore[method-assign]
OperationPlan._respond = _counted_respond  # type: ignore[method-assign]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's counts to the main process of pytest-xdist."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["requests"] = dict(requests)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up the counts of the workers."""
    requests.update(getattr(node, "workeroutput", {}).get("requests", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts."""
    terminalreporter.write_line(f"fast routes served {requests['fast']} of {requests['all']} requests")
