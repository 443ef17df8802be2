"""Create and drop indexes while the tables are in use. Each function can be repeated after an interruption.

The functions run outside a transaction. A revision that calls them should do nothing else: after an interruption, the
next migration job runs the whole revision again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op

_INVALID = sa.text(
    "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(quote_ident(:name)) AND NOT indisvalid)"
)


def create_index(name: str, table: str, columns: Sequence[str], **options: Any) -> None:
    """Create the index without blocking reads and writes. Do nothing if a valid one exists."""
    with _autocommit():
        # An interrupted build leaves an invalid index, which slows down writes and serves no query. A script (--sql)
        # cannot query whether the index is valid, so it always builds again.
        if op.get_context().as_sql or op.get_bind().scalar(_INVALID, {"name": name}):
            op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)
        op.create_index(name, table, list(columns), postgresql_concurrently=True, if_not_exists=True, **options)


def drop_index(name: str, table: str) -> None:
    """Drop the index without blocking reads and writes. Do nothing if it does not exist."""
    with _autocommit():
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


@contextmanager
def _autocommit() -> Iterator[None]:
    with op.get_context().autocommit_block():
        # A concurrent build waits for older transactions and blocks no statement. The limits of a migration, which are
        # for statements that do block, would only make it fail on a busy server.
        before = _limits()
        for name in before:
            op.execute(f"SET {name} = 0")
        yield
        for name, value in before.items():  # not after a failure: that ends the session
            op.execute(f"RESET {name}" if value is None else f"SET {name} = {value}")


def _limits() -> dict[str, str | None]:
    """Return the limits of this session, by name; None for the default of a session that runs a script (--sql)."""
    if op.get_context().as_sql:
        return {"lock_timeout": None, "statement_timeout": None}
    rows = op.get_bind().execute(
        sa.text(  # `transaction_timeout` exists since PostgreSQL 17
            "SELECT name, setting FROM pg_settings"
            " WHERE name IN ('lock_timeout', 'statement_timeout', 'transaction_timeout')"
        )
    )
    return {name: str(setting) for name, setting in rows}
