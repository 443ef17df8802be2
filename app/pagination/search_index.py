"""Whether the server has the index that a search needs. Without it, a search reads the whole table.

The server is queried, since a migration leaves the index out where the extension pg_trgm is missing
(docs/decisions/0046-declared-lanes.md).
"""

import math
import time
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BinaryExpression,
    Boolean,
    ColumnElement,
    String,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    column,
    or_,
    select,
    table,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import operators
from sqlalchemy.sql.visitors import iterate

from app.database.session import ReadSession

# After this time, a missing index is looked for again.
CHECK_AGAIN_SECONDS = 60.0

_INDEX = table("pg_index", *map(column, ("indrelid", "indkey", "indclass", "indpred")), column("indisvalid", Boolean()))
_OPERATORS = table("pg_opclass", column("oid"), column("opcname", String()))
_COLUMN = table("pg_attribute", column("attrelid"), column("attnum"), column("attname", String()))
# The columns of a table that are in a valid index of pg_trgm for all of its rows.
_INDEXED_COLUMNS = (
    select(_COLUMN.c.attname)
    .distinct()
    .select_from(_INDEX)
    .join(_OPERATORS, _OPERATORS.c.oid == any_(_INDEX.c.indclass))
    .join(_COLUMN, (_COLUMN.c.attrelid == _INDEX.c.indrelid) & (_COLUMN.c.attnum == any_(_INDEX.c.indkey)))
    .where(
        _INDEX.c.indrelid == cast(cast(bindparam("table", type_=Text()), Text()), postgresql.REGCLASS()),
        _INDEX.c.indisvalid,
        _INDEX.c.indpred.is_(None),
        or_(_OPERATORS.c.opcname == "gin_trgm_ops", _OPERATORS.c.opcname == "gist_trgm_ops"),
    )
)
_LIKE = (operators.like_op, operators.ilike_op)


class SearchIndex:
    """The index of pg_trgm that a condition needs: with all columns that it compares by LIKE, of one table.

    Other conditions need none, such as those of a full-text search.
    """

    def __init__(self, condition: ColumnElement[bool]) -> None:
        parts = iterate(condition)
        compared = [each.left for each in parts if isinstance(each, BinaryExpression) and each.operator in _LIKE]
        columns = [each for part in compared for each in map(_column, iterate(part)) if each is not None]
        tables = {each[0] for each in columns}
        self._table = tables.pop() if len(tables) == 1 else None
        self._columns = {name for _, name in columns}
        # For each session, the time until which no query is needed, and whether its server has the index.
        self._known: WeakKeyDictionary[ReadSession, tuple[float, bool]] = WeakKeyDictionary()

    async def exists(self, session: ReadSession) -> bool:
        """Return True if the session's server has the index, or none is needed. Raise as `ReadSession.all()`."""
        if not self._columns:
            return True
        if self._table is None:
            return False
        now = time.monotonic()
        until, exists = self._known.get(session, (-math.inf, False))
        if now >= until:
            found = await session.all(_INDEXED_COLUMNS, table=self._table)
            exists = self._columns <= {row["attname"] for row in found}
            self._known[session] = (math.inf if exists else now + CHECK_AGAIN_SECONDS, exists)
        return exists


def _column(part: object) -> tuple[str, str] | None:
    """Return the quoted table and the name of a column; None for another part of a condition."""
    owner = getattr(part, "table", None)
    if not isinstance(owner, Table):
        return None
    names = (name.replace('"', '""') for name in (owner.schema, owner.name) if name)
    return ".".join(f'"{name}"' for name in names), str(getattr(part, "name", ""))
