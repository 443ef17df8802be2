"""Indexes on tables that are in use. Each function can be run again after it was stopped anywhere.

Nothing here is in a transaction, so a revision that uses it should do nothing else: had it been stopped half way, it
would begin anew at its beginning.
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
    """Build the index while the table is read and written, unless it is there."""
    with _autocommit():
        # Stopped half way, the server leaves an index that costs like one and serves no query. A script cannot ask
        # whether this is one, so it begins anew.
        if op.get_context().as_sql or op.get_bind().scalar(_INVALID, {"name": name}):
            op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)
        op.create_index(name, table, list(columns), postgresql_concurrently=True, if_not_exists=True, **options)


def drop_index(name: str, table: str) -> None:
    """Drop the index, if it is there, without stopping who uses the table."""
    with _autocommit():
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


@contextmanager
def _autocommit() -> Iterator[None]:
    with op.get_context().autocommit_block():
        # It waits for every transaction that is older, and nobody waits for it: the owner's lock_timeout, which is for
        # migrations that others wait for, would only make it fail on a busy day.
        op.execute("SET lock_timeout = 0")
        yield
        op.execute("RESET lock_timeout")  # a failure ends the session
