"""Every private name of SQLAlchemy that is read from its objects, under a name that says what it is here.

Two subclasses use the private names of their base class in their own modules: `pool.py` and `write_session.py`. The
test tests/unit/test_private_names.py lists all names, and fails if an upgrade removes one.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionFairy, _ConnectionRecord
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

# The functions themselves, without one around them: the pool calls them for each checkout.
is_invalidated: Callable[[Any], bool] = _ConnectionRecord._is_hard_or_soft_invalidated
"""Return True if the entry's connection, or all connections of its age, were invalidated."""
close_proxy: Callable[..., None] = _ConnectionFairy._close_special
"""Return a proxy's connection to its pool. `transaction_reset=True`: it has no transaction to roll back."""

entry_of: Callable[[PoolProxiedConnection], ConnectionPoolEntry] = attrgetter("_connection_record")
pool_of: Callable[[PoolProxiedConnection], Any] = attrgetter("_pool")

# Of a compiled statement.
result_columns: Callable[[Any], Sequence[Any]] = attrgetter("_result_columns")
bind_processors: Callable[[Any], Mapping[str, Any]] = attrgetter("_bind_processors")
has_ordered_columns: Callable[[Any], bool] = attrgetter("_ordered_columns")

# Of the execution of a statement: True if its rows are fetched in parts.
is_streamed: Callable[[Any], bool] = attrgetter("_is_server_side")

# Of an element of a statement: what the ORM has noted about it.
annotations: Callable[[Any], Mapping[str, Any]] = attrgetter("_annotations")


def elements(statement: Any) -> tuple[Any, ...]:
    """Return what the statement selects or returns, with each entity as one element."""
    return tuple(statement._returning if isinstance(statement, UpdateBase) else getattr(statement, "_raw_columns", ()))


def options(statement: Any) -> tuple[Any, ...]:
    """Return the options of the statement: those of `options()`."""
    return tuple(getattr(statement, "_with_options", ()))


def takes_lock(statement: Any) -> bool:
    """Return True if the statement is a SELECT FOR UPDATE, or with another lock."""
    return getattr(statement, "_for_update_arg", None) is not None


def added_texts(statement: Any) -> tuple[str, ...]:
    """Return the SQL texts that were added to a SELECT or CTE: prefixes, suffixes and statement hints."""
    added = (*getattr(statement, "_prefixes", ()), *getattr(statement, "_suffixes", ()))
    # Of a prefix, the text and the dialect; of a hint, the dialect and the text.
    hints = (text for _, text in getattr(statement, "_statement_hints", ()))
    return (*(str(text) for text, _ in added), *hints)


def on_postgresql(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that a column has on PostgreSQL: the type itself, or its variant for that dialect."""
    return kind._variant_mapping.get("postgresql", kind)


def independent_ctes(statement: Any) -> Sequence[Any]:
    """Return the CTEs of a statement that nothing in it needs to refer to: those of `add_cte()`."""
    found: Sequence[Any] = statement._independent_ctes
    return found


def upserts(statement: Any) -> bool:
    """Return True if the INSERT has an ON CONFLICT clause."""
    return statement._post_values_clause is not None


def selected_names(statement: Any) -> Sequence[str]:
    """Return the names of the columns of an INSERT ... SELECT, in the order of the SELECT."""
    names: Sequence[str] = statement._select_names
    return names


def restricts_rows(statement: Any) -> bool:
    """Return True if the SELECT has a LIMIT, OFFSET, DISTINCT, GROUP BY or HAVING."""
    return bool(
        statement._limit_clause is not None
        or statement._offset_clause is not None
        or statement._fetch_clause is not None
        or statement._distinct
        or statement._distinct_on
        or statement._group_by_clauses
        or statement._having_criteria
    )


def result_processor(kind: TypeEngine[Any], dialect: Any, server_type: int | None) -> Any:
    """Return the function that converts the driver's value to the type's; None if it needs none."""
    return kind._cached_result_processor(dialect, server_type)
