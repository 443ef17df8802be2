"""Fast routes: FastAPI's operations, prepared once instead of for each request.

`install(app)` works for any FastAPI application and changes nothing that a client, a route or an instrumentation can
observe, except the time. Inside FastAPI's own middleware, exception handling and exit stacks, a dispatcher finds the
operation by an index, and a plan runs it. Request, dependencies, validation, serialisation and exits are the same, in
FastAPI's order. Whatever is not FastAPI's own (an overridden class, a wrapped handler, a dependency override) is
run by FastAPI. docs/decisions/0014-operation-plans.md has the measurements.

`_fastapi.py` holds the private names of FastAPI and Starlette. `VERSIONS` are the versions that the tests have
compared with FastAPI; on any other version `install()` warns and does nothing.
"""

import logging
import sys
from typing import TYPE_CHECKING, Literal, NamedTuple
from weakref import WeakSet

import fastapi
import starlette
from fastapi import FastAPI

if TYPE_CHECKING:
    from app.web.fast_routes.dispatcher import Dispatcher

logger = logging.getLogger(__name__)

# Minor versions of FastAPI and Starlette whose behaviour the tests have compared with the plans.
VERSIONS = {("0.165", "1.10")}

Mode = Literal["auto", "off"]

# Applications for which install() was called with mode "off": the dispatcher of an outer application leaves them alone.
switched_off: WeakSet[FastAPI] = WeakSet()


class RouteReport(NamedTuple):
    """One operation: its methods and path template, and why FastAPI runs it (None: it is fast)."""

    methods: tuple[str, ...]
    path: str
    reason: str | None


def install(app: FastAPI, mode: Mode = "auto") -> bool:
    """Serve the application's operations by plans, also those added later. Return False if FastAPI serves them.

    Call it once, after the application was created. With mode "auto", an untested version of FastAPI or Starlette
    switches fast routes off, with a warning. With mode "off" FastAPI serves the application, even if it is
    mounted in an application with fast routes.
    """
    if mode == "off":
        switched_off.add(app)
        return False
    switched_off.discard(app)
    versions = (_minor(fastapi.__version__), _minor(starlette.__version__))
    if versions not in VERSIONS:
        logger.warning("fast routes are off: FastAPI %s with Starlette %s is untested", *versions)
        return False
    try:
        from app.web.fast_routes.dispatcher import install_dispatcher

        return install_dispatcher(app)
    except Exception:
        logger.warning("fast routes are off: they could not be prepared", exc_info=True)
        return False


def taken(app: FastAPI) -> int:
    """Return the number of requests that took the fast path."""
    dispatcher = _dispatcher(app)
    return dispatcher.taken if dispatcher else 0


def report(app: FastAPI) -> list[RouteReport]:
    """Return a report of every operation, in the order of FastAPI's routing; empty if fast routes are off."""
    dispatcher = _dispatcher(app)
    return dispatcher.report() if dispatcher else []


def log_report(app: FastAPI) -> None:
    """Log how many operations are fast, and with level debug why the others are not."""
    operations = report(app)
    slow = [operation for operation in operations if operation.reason]
    logger.info("fast routes: %d of %d", len(operations) - len(slow), len(operations))
    for operation in slow:
        logger.debug("not fast: %s %s: %s", ",".join(operation.methods), operation.path, operation.reason)


def _dispatcher(app: FastAPI) -> "Dispatcher | None":
    # On an untested version, the module was not imported and cannot be.
    module = sys.modules.get("app.web.fast_routes.dispatcher")
    stack = app.router.middleware_stack
    return stack if module is not None and isinstance(stack, module.Dispatcher) else None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
