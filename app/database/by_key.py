"""Statements that find one row by a unique key. A read session can send several keys of one in one statement."""

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Select, any_, bindparam, func, select, tuple_

from app.database._sqlalchemy import restricts_rows
from app.database.key_columns import COMPARABLE_TYPES, KeyColumn, array_of, comparison_of, is_unique, name_in
from app.database.statement_checks import depends_on_more_than_rows, has_aggregate, require_select, required_parameters


class KeyedSelect:
    """A SELECT of columns of which a unique key finds one row: `session.one(statement, key)`.

    - `statement` selects columns, among them those of the key. It may join, as long as no key comes twice.
    - `key` are the columns of the primary key or of a unique constraint, each an integer, UUID, text, boolean or date.

    Declare it once, at module level. Raise TypeError for a statement whose row for a key would depend on the other keys
    of the same statement, or on anything but the rows of the tables:

    - LIMIT, OFFSET, DISTINCT, GROUP BY, HAVING, aggregates and window functions, except in a subquery
    - parameters other than the key
    - locks, literal SQL and functions that are not known to be immutable or stable; `functions` names further ones
    """

    def __init__(self, statement: Select[*tuple[Any, ...]], *key: KeyColumn, functions: Iterable[str] = ()) -> None:
        require_select(statement)
        if reason := _refusal(statement, key, frozenset(functions)):
            raise TypeError(f"{reason} (statement: {' '.join(str(statement).split())[:200]})")
        self.names = tuple(f"key_{number}" for number in range(len(key)))
        # Of one key: the parameters are `names`.
        self.one = statement.where(
            *(column == bindparam(name, type_=column.type) for name, column in zip(self.names, key, strict=True))
        )
        # Of several keys: the parameters are `names`, each of them an array.
        arrays = [bindparam(name, type_=array_of(column.type)) for name, column in zip(self.names, key, strict=True)]
        self.several = statement.where(
            key[0] == any_(arrays[0])
            if len(key) == 1
            else tuple_(*key).in_(select(*(func.unnest(array).label(array.key) for array in arrays)))
        )
        columns = [name_in(column.expression, statement.selected_columns) for column in key]
        self.key_of: Callable[[Any], Any] = itemgetter(*columns)
        """Return the key of a row: a value, or a tuple for a composite key."""
        self._fits = [check for column in key if (check := comparison_of(column.type)) is not None]

    def parameters(self, key: Any) -> dict[str, Any]:
        """Return the parameters of `one`. Raise TypeError unless the key has as many values as columns."""
        values = (key,) if len(self.names) == 1 else key
        if not isinstance(values, tuple) or len(values) != len(self.names):
            raise TypeError(f"a key of this statement is a tuple of {len(self.names)} values, not {key!r}")
        return dict(zip(self.names, values, strict=True))

    def arrays(self, keys: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters of `several`."""
        if len(self.names) == 1:
            return {self.names[0]: keys}
        return dict(zip(self.names, map(list, zip(*keys, strict=True)), strict=True))

    def can_share(self, key: Any) -> bool:
        """Return False for a key that the server or the driver may refuse. Such a key fails alone."""
        if len(self._fits) == 1:
            return self._fits[0](key)
        return (
            isinstance(key, tuple)
            and len(key) == len(self._fits)
            and all(fits(value) for fits, value in zip(self._fits, key, strict=True))
        )


def _refusal(statement: Select[*tuple[Any, ...]], key: Sequence[KeyColumn], functions: frozenset[str]) -> str | None:
    """Return why the statement cannot be sent for several keys at once; None if it can."""
    if restricts_rows(statement):
        return "LIMIT, OFFSET, DISTINCT, GROUP BY and HAVING apply to all keys together: use ReadSession.first()"
    if has_aggregate(statement):
        return "an aggregate or window function covers all keys together: move it into a subquery of its own"
    if found := depends_on_more_than_rows(statement, functions):
        return f"the result of {found} may differ for each read: use ReadSession.first(), or name it in `functions`"
    if names := required_parameters(statement):
        return f"the key is the only parameter, and the statement has {', '.join(sorted(names))}"
    if not key or not is_unique([column.expression for column in key]):
        return f"{', '.join(map(str, key)) or 'no column'} is not the primary key or a unique constraint of a table"
    for column in key:
        if name_in(column.expression, statement.selected_columns) is None:
            return f"the statement must select {column}, once"
        if comparison_of(column.type) is None:
            return f"{column} of type {column.type!r} cannot be compared in Python: a key is {COMPARABLE_TYPES}"
    return None
