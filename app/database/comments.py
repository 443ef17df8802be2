"""Comments on statements, in the form of sqlcommenter: the route and the lane that a statement is for.

A prepared statement is found by its text, so each route multiplies the texts of the statements that it shares with
other routes. The number of texts with a comment is bounded: further ones are sent without
(docs/decisions/0048-disconnects-and-traces.md).
"""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, event

from app.database.fast_path import CompiledStatement, Fetch
from app.database.lanes import current_lane
from app.database.pool import BoundedPool
from app.database.session import Database
from app.database.stale_statements import statement_texts
from app.lanes import LaneName


def comment_statements(database: Database, route: Callable[[], str], most: int) -> None:
    """Add a comment to the statements of the sessions from now on, in at most `most` different texts.

    `route` returns the route that the current code belongs to; empty if there is none.
    """
    texts = _CommentedTexts(database, route, most)
    for session in (database.read, database.statement):
        session.wrap_fetch(texts.wrap)
    for engine in database.engines:
        event.listen(engine.sync_engine, "before_cursor_execute", texts.before_cursor_execute, retval=True)
        statement_texts(engine).on_renewal(texts.clear)


class _CommentedTexts:
    """The texts of statements with their comments, by statement, route and lane, and by the form of the comment."""

    def __init__(self, database: Database, route: Callable[[], str], most: int) -> None:
        self._engine = database.engine
        self._route = route
        self._most = most
        self._texts: dict[tuple[str, str, LaneName, bool], str] = {}
        # The driver takes % for the beginning of a parameter.
        self._is_format = self._engine.dialect.paramstyle in ("format", "pyformat")

    def clear(self) -> None:
        """Forget all texts: a schema change has replaced them."""
        self._texts.clear()

    def wrap(self, fetch: Fetch) -> Fetch:
        """Return a function that adds the comment to a statement of the fast path, which has numbered parameters."""

        async def commented(connection: Any, statement: CompiledStatement, arguments: Sequence[Any]) -> list[Any]:
            return await fetch(connection, statement._replace(sql=self._commented(statement.sql)), arguments)

        return commented

    def before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        """Add the comment to a statement of SQLAlchemy's ordinary path; not to a batch, whose text has any length."""
        if executemany:
            return statement, parameters
        return self._commented(statement, escaped=self._is_format), parameters

    def _commented(self, sql: str, *, escaped: bool = False) -> str:
        route, lane = self._route(), self._lane(sql)
        key = (sql, route, lane, escaped)
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) >= self._most:
                return sql
            comment = _comment(route, lane)
            text = self._texts[key] = sql + (comment.replace("%", "%%") if escaped else comment)
        return text

    def _lane(self, sql: str) -> LaneName:
        pool = self._engine.pool
        return pool.lane_name(sql) if isinstance(pool, BoundedPool) else current_lane.get()


def _comment(route: str, lane: LaneName) -> str:
    """Return the comment. Its values are URL-encoded, so that none can end it."""
    values = {"lane": lane} | ({"route": route} if route else {})
    pairs = [f"{key}='{quote(value, safe='')}'" for key, value in values.items()]
    return f" /*{','.join(pairs)}*/"
