"""`headroom routes`: list the operations of the API."""

from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import make_url

from app.main import create_app
from app.settings import load_settings
from app.web import fast_routes
from app.web.deps import get_database, get_db, get_read_db, get_statement_db

# A session's dependency, its name, and what is committed when.
SESSIONS = (
    (get_db, "write", "its transaction, before the response"),
    (get_statement_db, "statement", "each statement"),
    (get_read_db, "read", ""),
    (get_database, "any", "what the handler decides"),
)
HEADER = ("METHODS", "PATH", "FAST", "SESSION", "COMMITS")


def show_routes() -> None:
    """Print a table of the operations. It needs no database, and no setting that a route does not depend on."""
    app = create_app(load_settings(database_url=make_url("postgresql+asyncpg://"), secret_key="not used " * 4))
    print(routes_table(app))


def routes_table(app: FastAPI) -> str:
    """Return a table of the operations: methods, path, whether it is fast, its sessions, and what is committed when."""
    reasons = {(operation.methods, operation.path): operation.reason for operation in fast_routes.report(app)}
    rows = [HEADER]
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, APIRoute):
            methods, path = tuple(sorted(context.methods or ())), context.path_format or ""
            reason = reasons.get((methods, path), "fast routes are off")
            found = list(_sessions(context.dependant))
            sessions = ", ".join(name for _, name, _ in found)
            commits = "; ".join(commits for _, _, commits in found if commits)
            rows.append((",".join(methods), path, "yes" if reason is None else f"no: {reason}", sessions, commits))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _sessions(dependant: Dependant) -> Iterator[tuple[object, str, str]]:
    """Yield the sessions that an operation or its dependencies take, each once."""
    calls = set(_calls(dependant))
    yield from (session for session in SESSIONS if session[0] in calls)


def _calls(dependant: Dependant) -> Iterator[object]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _calls(dependency)
