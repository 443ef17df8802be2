"""Finds the operations of a revision that can break the code of the revision before it.

`make check-migrations` refuses them in a revision that is not declared as contracting. If the code before does not use
what goes, the revision says so in a variable: `additive_because = "no release writes NULL since 1.4"`.
"""

import io
import re
from collections.abc import Iterator
from typing import Any

import alembic_postgresql_enum  # its import registers the operations of enums
from alembic.operations import Operations, ops
from alembic.operations.base import AbstractOperations
from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Column, Integer, Numeric, String, Text, UniqueConstraint
from sqlalchemy.types import BigInteger, SmallInteger, TypeEngine

from app.database.schema_version import ADDITIVE, kind_of

assert alembic_postgresql_enum

# Of raw SQL, only what is certain. Names of objects that the same revision creates are not considered.
_BREAKING_SQL = (
    (r"\bDROP\s+(TABLE|VIEW|MATERIALIZED\s+VIEW|SCHEMA|TYPE|DOMAIN|FUNCTION|PROCEDURE|SEQUENCE|EXTENSION)\b", "drops"),
    (r"\bDROP\s+(COLUMN|DEFAULT|EXPRESSION|IDENTITY)\b", "drops"),
    (r"\bRENAME\b", "renames"),
    (r"\bALTER\s+(COLUMN\s+)?\S+\s+(SET\s+DATA\s+)?TYPE\b", "changes a type"),
    (r"\bSET\s+NOT\s+NULL\b", "refuses NULL"),
    (r"\bADD\s+(CONSTRAINT\b|CHECK\b|UNIQUE\b|FOREIGN\b|PRIMARY\b|EXCLUDE\b)", "adds a constraint"),
    (r"\bCREATE\s+UNIQUE\s+INDEX\b", "adds a constraint"),
    (
        r"\bADD\s+(COLUMN\s+)?(?!.*\bDEFAULT\b)(?!.*\bGENERATED\b)[^,;]*\bNOT\s+NULL\b",
        "INSERT must set it",
    ),
    (r"\b(TRUNCATE|REVOKE)\b", "takes away"),
    (r"\b(ENABLE|FORCE)\s+ROW\s+LEVEL\s+SECURITY\b", "hides rows"),
    (r"\bSET\s+SCHEMA\b", "moves"),
)
_COMMENTS_AND_LITERALS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)


class _Output(io.StringIO):
    """A script, and the part of it that no operation wrote: statements that a revision executes on the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.inside_operation = False
        self.direct = ""

    def write(self, text: str) -> int:
        if not self.inside_operation:
            self.direct += text
        return super().write(text)


class Upgrade:
    """What `upgrade()` of a revision does: its operations, and its SQL."""

    def __init__(self, script: Script) -> None:
        self.operations: list[ops.MigrateOperation] = []
        output = _Output()
        options = {"as_sql": True, "output_buffer": output, "literal_binds": True, "transaction_per_migration": True}
        context = MigrationContext.configure(dialect_name="postgresql", opts=options)
        original = AbstractOperations.invoke

        def invoke(operations: AbstractOperations, operation: ops.MigrateOperation) -> Any:
            self.operations.append(operation)
            output.inside_operation = True
            try:
                return original(operations, operation)
            finally:
                output.inside_operation = False

        # On the class, because `op.batch_alter_table()` has an object of its own.
        AbstractOperations.invoke = invoke  # type: ignore[method-assign,assignment]
        try:
            with Operations.context(context), context.begin_transaction(_per_migration=True):
                script.module.upgrade()
        finally:
            AbstractOperations.invoke = original  # type: ignore[method-assign]
        self.operations.append(ops.ExecuteSQLOp(output.direct))
        self.sql = output.getvalue()


def undeclared(script: Script) -> list[str]:
    """Return the contracting operations of a revision that declares to be additive; empty if there are none."""
    if kind_of(script) != ADDITIVE or getattr(script.module, "additive_because", None):
        return []
    return list(contracting_operations(Upgrade(script).operations))


def contracting_operations(operations: list[ops.MigrateOperation]) -> Iterator[str]:
    """Return a description of each operation that can break the code before, except on tables that they create."""
    created = {operation.table_name for operation in operations if isinstance(operation, ops.CreateTableOp)}
    for operation in operations:
        table = getattr(operation, "table_name", None)
        if table in created:
            continue
        where = f"{type(operation).__name__}({table})"
        match operation:
            case ops.ExecuteSQLOp():
                yield from _of_sql(str(operation.sqltext))
            case ops.DropTableOp() | ops.RenameTableOp():
                yield f"{where}: the code before uses the table"
            case ops.DropColumnOp():
                yield f"{where}: drops {operation.column_name}"
            case ops.AddColumnOp():
                if _must_be_set(operation.column):
                    yield f"{where}: INSERT of the code before does not set {operation.column.name}"
            case ops.AlterColumnOp():
                yield from (f"{where}: {operation.column_name} {reason}" for reason in _of_column(operation))
            case ops.CreateUniqueConstraintOp() | ops.CreateForeignKeyOp() | ops.CreateCheckConstraintOp():
                source = getattr(operation, "source_table", table)
                if source not in created:
                    yield f"{type(operation).__name__}({source}): {operation.constraint_name} refuses rows"
            case ops.AddConstraintOp():  # primary keys and exclusion constraints
                yield f"{where}: refuses rows"
            case ops.CreateIndexOp():
                if operation.unique:
                    yield f"{where}: {operation.index_name} refuses rows"
            case ops.DropIndexOp():
                if str(operation.index_name).startswith("uq_"):
                    yield f"{where}: ON CONFLICT of the code before can need {operation.index_name}"
            case ops.DropConstraintOp():
                if operation.constraint_type in ("unique", "primary") or str(operation.constraint_name).startswith(
                    ("uq_", "pk_")
                ):
                    yield f"{where}: ON CONFLICT of the code before can need {operation.constraint_name}"
            case _:
                continue


def _must_be_set(column: "Column[Any]") -> bool:
    """Return True if an INSERT without the column fails, or if the column refuses rows that the code before writes."""
    if column.unique or any(isinstance(each, UniqueConstraint) for each in column.constraints):
        return True
    return not column.nullable and not column.server_default and not column.identity and not column.computed


def _of_column(operation: ops.AlterColumnOp) -> Iterator[str]:
    if operation.modify_name is not None:
        yield f"is renamed to {operation.modify_name}"
    if operation.modify_nullable is False:
        yield "refuses NULL"
    if operation.modify_server_default is None:
        yield "loses its default"
    if operation.modify_type is not None and not _is_wider(operation.existing_type, operation.modify_type):
        yield f"gets the type {operation.modify_type!r}, which is not known to be wider"


def _is_wider(before: TypeEngine[Any] | None, after: TypeEngine[Any]) -> bool:
    """Return True if every value of the type before has the same meaning in the type after."""
    if isinstance(before, String) and isinstance(after, String):
        if isinstance(after, Text) or after.length is None:
            return True
        return before.length is not None and before.length <= after.length
    if isinstance(before, Integer) and isinstance(after, Integer):
        return _bytes(before) <= _bytes(after)
    if isinstance(before, Numeric) and isinstance(after, Numeric) and type(before) is type(after):
        return before.scale == after.scale and (before.precision or 0) <= (after.precision or 1000)
    return False


def _bytes(integer: Integer) -> int:
    return 2 if isinstance(integer, SmallInteger) else 8 if isinstance(integer, BigInteger) else 4


def _of_sql(text: str) -> Iterator[str]:
    code = _COMMENTS_AND_LITERALS.sub("''", text)
    for statement in code.split(";"):
        for pattern, reason in _BREAKING_SQL:
            if re.search(pattern, statement, re.IGNORECASE | re.DOTALL):
                yield f"execute({' '.join(statement.split())[:100]}): {reason}"
                break
