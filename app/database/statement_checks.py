"""Which statements a session accepts. A statement that it would answer wrongly is refused, with the remedy."""

import re
from typing import Any

from sqlalchemy import BindParameter, CompoundSelect, Exists, FromClause, Over, Select, TableSample, TextClause
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import LoaderCriteriaOption
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import AliasedReturnsRows, ScalarSelect, SelectBase
from sqlalchemy.sql.visitors import iterate

from app.database._sqlalchemy import added_texts, annotations, elements, options, takes_lock

# A statement that returns rows.
Statement = Select[*tuple[Any, ...]] | UpdateBase

_MAX_QUOTED = 200


def require_select(statement: Statement) -> None:
    """Raise TypeError unless the statement reads columns, without a lock."""
    if isinstance(statement, UpdateBase):
        raise _refusal(statement, "a read session does not write: use StatementSession.returned() or a write session")
    for part in _parts(statement):
        _require_columns(part, "select its columns, or read entities with ReadSession.entities()")
        _refuse_lock(part)


def require_returning(statement: Statement) -> None:
    """Raise TypeError unless the statement is an INSERT, UPDATE or DELETE that returns columns."""
    if not isinstance(statement, UpdateBase):
        raise _refusal(statement, "a statement session only writes: use ReadSession.all() or ReadSession.first()")
    if not elements(statement):
        raise _refusal(statement, "the statement returns no row: add returning()")
    _require_columns(statement, "return its columns, or use a write session")


def require_entity(statement: Select[Any]) -> None:
    """Raise TypeError unless the statement selects one entity, without a lock."""
    selected = elements(statement)
    if not isinstance(statement, Select) or len(selected) != 1 or not _is_entity(selected[0]):
        raise _refusal(
            statement, "entities() reads one kind of entity, as in select(User): read columns with ReadSession.all()"
        )
    _refuse_lock(statement)


def is_plain(statement: Statement) -> bool:
    """Return False if options of the statement, or of a part of it, change what its execution returns."""
    return not any(options(part) or part.get_execution_options() for part in _parts(statement))


# Functions of PostgreSQL that are immutable or stable: in one statement, they return the same for the same arguments.
_STABLE_FUNCTIONS = frozenset(
    "abs array_agg array_length avg bool_and bool_or btrim cardinality ceil char_length coalesce concat concat_ws count"
    " current_date current_timestamp date_part date_trunc extract floor greatest initcap json_agg json_build_object"
    " jsonb_agg jsonb_build_object least left length lower ltrim max md5 min mod now nullif percentile_cont"
    " percentile_disc plainto_tsquery position rank replace right round row_number rtrim similarity split_part"
    " string_agg strpos substr substring sum to_char to_tsquery to_tsvector trim ts_rank unnest upper"
    " websearch_to_tsquery".split()
)
_AGGREGATES = frozenset(
    "array_agg avg bool_and bool_or count json_agg jsonb_agg max min string_agg sum unnest rank row_number"
    " percentile_cont percentile_disc".split()
)
# A number, the name of a column or the * of count(*), as literal SQL.
_HARMLESS_LITERAL = re.compile(r"\*|\w+(\.\w+)?")


def depends_on_more_than_rows(statement: Statement, functions: frozenset[str] = frozenset()) -> str | None:
    """Return the first part whose result may depend on more than the stored rows; None if there is none.

    Such a part is a function that may be volatile, literal SQL, a table sample or a lock. `functions` are names of
    further functions that are immutable or stable.
    """
    for part in iterate(statement):
        if isinstance(part, FunctionElement):
            name = getattr(part, "name", type(part).__name__).lower()
            # A function with the same name in another schema is another function.
            schema = tuple(getattr(part, "packagenames", ()))
            if name not in functions and (name not in _STABLE_FUNCTIONS or schema not in ((), ("pg_catalog",))):
                return f"the function {name}()"
        elif isinstance(part, TextClause) or getattr(part, "is_literal", False):
            if not _HARMLESS_LITERAL.fullmatch(str(part)):
                return f"the literal SQL {str(part)[:_MAX_QUOTED]!r}"
        elif isinstance(part, TableSample):
            return "a table sample"
        elif takes_lock(part):
            return "a lock"
        elif added := added_texts(part):
            return f"the literal SQL {added[0][:_MAX_QUOTED]!r}"
        elif isinstance(part, UpdateBase):
            return "a statement that writes"
    return None


def has_aggregate(statement: Select[*tuple[Any, ...]]) -> bool:
    """Return True if an aggregate or window function of the statement covers more than one row, outside subqueries."""
    waiting: list[Any] = list(statement.get_children())
    while waiting:
        part = waiting.pop()
        if isinstance(part, Over) or (isinstance(part, FunctionElement) and _is_aggregate(part)):
            return True
        if not isinstance(part, (SelectBase, ScalarSelect, Exists, AliasedReturnsRows)):
            waiting += part.get_children()
    return False


def _is_aggregate(function: FunctionElement[Any]) -> bool:
    return getattr(function, "name", "").lower() in _AGGREGATES


def required_parameters(statement: Statement) -> set[str]:
    """Return the names of the parameters that the statement has no value for."""
    return {part.key for part in iterate(statement) if isinstance(part, BindParameter) and part.required}


def _require_columns(statement: Any, remedy: str) -> None:
    for element in elements(statement):
        if (found := _entity(element)) is not None:
            raise _refusal(statement, f"a row of this session has columns, and the statement names {found}: {remedy}")
    if any(not isinstance(option, LoaderCriteriaOption) for option in options(statement)):
        raise _refusal(statement, f"options() loads relationships, which a row of this session does not have: {remedy}")


def _refuse_lock(statement: Any) -> None:
    if takes_lock(statement):
        raise _refusal(
            statement, "a lock ends with its transaction, which this session does not have: use a write session"
        )


def _parts(statement: Any) -> list[Any]:
    """Return the statement and, if it is a UNION or the like, each SELECT in it."""
    selects = statement.selects if isinstance(statement, CompoundSelect) else ()
    return [statement, *(part for select in selects for part in _parts(select))]


def _entity(element: Any) -> str | None:
    """Return the name of the entity, bundle or relationship that the element is; None for a column."""
    noted = annotations(element)
    if _is_entity(element):
        return f"the entity {noted['parententity'].mapper.class_.__name__}"
    if "bundle" in noted:
        return f"the bundle {noted['bundle'].name}"
    owner, name = noted.get("proxy_owner"), noted.get("proxy_key")
    if owner is not None and name in owner.mapper.relationships:
        return f"the relationship {owner.mapper.class_.__name__}.{name}"
    return None


def _is_entity(element: Any) -> bool:
    noted = annotations(element)
    # A column_property() of a function is a FROM clause too, but it has a name in its entity.
    return isinstance(element, FromClause) and "parententity" in noted and "proxy_key" not in noted


def _refusal(statement: Any, reason: str) -> TypeError:
    try:
        sql = " ".join(str(statement).split())
    except SQLAlchemyError:  # an option that does not fit the statement
        sql = repr(statement)
    return TypeError(f"{reason} (statement: {sql if len(sql) <= _MAX_QUOTED else sql[:_MAX_QUOTED] + ' ...'})")
