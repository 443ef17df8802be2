"""Options of autogenerate, for `migrations/env.py` and for its tests."""

from typing import Any, Literal

import alembic_postgresql_enum  # its import registers the comparison of enums
from alembic.autogenerate.rewriter import Rewriter
from alembic.operations import ops
from sqlalchemy import Column, Constraint, DateTime, Identity
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import SchemaItem

from app.database.schema_version import BACKFILLS_TABLE, HISTORY_TABLE

assert alembic_postgresql_enum

# Columns and constraints, with their tables, that the code has stopped using. They are no drift. A contracting revision
# of a later release drops them: docs/expand-and-contract.md. For example {("users", "is_active")}.
LEAVING: set[tuple[str, str]] = set()


def include_object(item: SchemaItem, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Return True if a difference of this object counts as drift.

    The search indexes do not: whether they exist depends on the server's extensions. `schema_revisions` and
    `schema_backfills` are not models. What is in LEAVING is only in the database.
    """
    if reflected and isinstance(item, Column | Constraint) and item.table is not None and name is not None:
        return (item.table.name, name) not in LEAVING
    if kind == "table" and name in (HISTORY_TABLE, BACKFILLS_TABLE):
        return False
    return not (kind == "index" and reflected and name is not None and name.endswith("_trgm"))


def render_item(kind: str, item: object, autogenerate: object) -> str | Literal[False]:
    """Return the Python source of an object in a revision; False leaves it to Alembic.

    Alembic would render the SQLite variant of a timestamp too.
    """
    if kind == "type" and isinstance(item, DateTime):
        return f"sa.DateTime(timezone={item.timezone})"
    return False


rewrite = Rewriter()


@rewrite.rewrites(ops.AlterColumnOp)
def drop_identity(context: object, revision: object, operation: ops.AlterColumnOp) -> ops.MigrateOperation:
    """Replace the operation that removes an identity: Alembic would render DROP DEFAULT, which PostgreSQL refuses."""
    if operation.modify_server_default is None and isinstance(operation.existing_server_default, Identity):
        quote = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]
        table, column = quote(operation.table_name), quote(operation.column_name)
        return ops.ExecuteSQLOp(f"ALTER TABLE {table} ALTER COLUMN {column} DROP IDENTITY")
    return operation


# Arguments of `context.configure()`. Alembic compares server defaults only if it is told to.
OPTIONS: dict[str, Any] = {
    "include_object": include_object,
    "render_item": render_item,
    "compare_type": True,
    "compare_server_default": True,
    "process_revision_directives": rewrite,
    # Check constraints are an opt-in of Alembic.
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
}
