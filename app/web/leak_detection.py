"""Reports requests that hold a database connection for too long."""

import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from app.database.pool import leak_suspects
from app.request_context import request_id, request_scope
from app.web.operation import route_template

logger = logging.getLogger("headroom.leaks")


def report(engine: AsyncEngine, after: float) -> None:
    """Log every connection that has been held for more than `after` seconds; each one once. The pool counts them."""
    for seconds, holder in leak_suspects(engine, after):
        scope = holder.context.get(request_scope, {})
        route = f"{scope['method']} {route_template(scope)}" if scope else "no request"
        holder_id = holder.context.get(request_id, "-")
        logger.warning(
            "leak suspect: a connection held for %.1f s by request %s, %s",
            seconds,
            holder_id,
            route,
            extra={"holder_request_id": holder_id, "holder": route, "held_seconds": round(seconds, 1)},
        )
