"""What autogenerate finds: the table of docs/migrations.md, and that all it writes works up, down and up again."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations import Operations
from alembic.operations.ops import DowngradeOps, UpgradeOps
from alembic.runtime.migration import MigrationContext
from alembic_postgresql_enum import TableReference
from sqlalchemy import URL, Connection, MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import SchemaItem

from app.database.base import Base
from app.paths import PROJECT_ROOT
from migrations.autogenerate import OPTIONS

Define = Callable[[MetaData], object]


class Case(NamedTuple):
    """A change of the models, and whether autogenerate finds it. `note` is for the table."""

    before: Define
    after: Define
    found: bool = True
    note: str = ""


def tags(*more: Callable[[], SchemaItem], comment: str | None = None) -> Define:
    """Return a definition of the table `tags` with more columns and constraints."""

    def define(metadata: MetaData) -> object:
        columns = (sa.Column("id", sa.BigInteger(), primary_key=True), sa.Column("name", sa.String(50)))
        # Built for each use: a column belongs to one table.
        added: list[SchemaItem] = [each() for each in more]
        return sa.Table("tags", metadata, *columns, *added, comment=comment)

    return define


def column(*arguments: Any, **options: Any) -> Callable[[], sa.Column[Any]]:
    return lambda: sa.Column(*arguments, **options)


def index(*arguments: Any, **options: Any) -> Callable[[], sa.Index]:
    return lambda: sa.Index(*arguments, **options)


def colour(*labels: str) -> Callable[[], sa.Column[Any]]:
    return lambda: sa.Column("colour", sa.Enum(*labels, name="colour"))


def nothing(metadata: MetaData) -> None:
    """Define no table."""


def check(text: str) -> Callable[[], sa.CheckConstraint]:
    return lambda: sa.CheckConstraint(text, name="name_is_set")


CASES = {
    "table": Case(nothing, tags()),
    "column": Case(tags(), tags(column("age", sa.Integer()))),
    "renamed column": Case(
        tags(column("age", sa.Integer())),
        tags(column("years", sa.Integer())),
        found=False,
        note="drops one and adds the other: the data is lost",
    ),
    "type": Case(tags(column("age", sa.Integer())), tags(column("age", sa.BigInteger()))),
    "length": Case(tags(column("code", sa.String(5))), tags(column("code", sa.String(9)))),
    "nullable": Case(tags(column("age", sa.Integer())), tags(column("age", sa.Integer(), nullable=False))),
    "server default": Case(tags(column("age", sa.Integer())), tags(column("age", sa.Integer(), server_default="0"))),
    "another server default": Case(
        tags(column("age", sa.Integer(), server_default="0")), tags(column("age", sa.Integer(), server_default="1"))
    ),
    "identity": Case(tags(column("n", sa.Integer(), nullable=False)), tags(column("n", sa.Integer(), sa.Identity()))),
    "computed column": Case(
        tags(), tags(column("length", sa.Integer(), sa.Computed("char_length(name)", persisted=True)))
    ),
    "expression of a computed column": Case(
        tags(column("length", sa.Integer(), sa.Computed("char_length(name)", persisted=True))),
        tags(column("length", sa.Integer(), sa.Computed("octet_length(name)", persisted=True))),
        found=False,
        note="a warning says so: drop the column and add it again",
    ),
    "index": Case(tags(), tags(index("ix_tags_name", "name"))),
    "expression index": Case(tags(), tags(index("ix_tags_lower", sa.text("lower(name)")))),
    "other expression of an index": Case(
        tags(index("ix_tags_lower", sa.text("lower(name)"))), tags(index("ix_tags_lower", sa.text("upper(name)")))
    ),
    "partial index": Case(tags(), tags(index("ix_tags_set", "name", postgresql_where=sa.text("name <> ''")))),
    "condition of a partial index": Case(
        tags(index("ix_tags_set", "name", postgresql_where=sa.text("name <> ''"))),
        tags(index("ix_tags_set", "name", postgresql_where=sa.text("name <> 'x'"))),
        found=False,
        note="give the index another name",
    ),
    "unique constraint": Case(tags(), tags(lambda: sa.UniqueConstraint("name", name="uq_tags_name"))),
    "check constraint": Case(tags(), tags(check("name <> ''"))),
    "text of a check constraint": Case(
        tags(check("name <> ''")),
        tags(check("name <> 'x'")),
        found=False,
        note="give the constraint another name",
    ),
    "foreign key": Case(
        tags(column("parent", sa.BigInteger())), tags(column("parent", sa.BigInteger(), sa.ForeignKey("tags.id")))
    ),
    "action of a foreign key": Case(
        tags(column("parent", sa.BigInteger(), sa.ForeignKey("tags.id"))),
        tags(column("parent", sa.BigInteger(), sa.ForeignKey("tags.id", ondelete="CASCADE"))),
    ),
    "comment": Case(tags(), tags(comment="Labels of books")),
    "new enum": Case(tags(), tags(colour("red", "green"))),
    "value of an enum": Case(tags(colour("red")), tags(colour("red", "green"))),
    "exclusion constraint": Case(
        tags(),
        tags(lambda: postgresql.ExcludeConstraint(("name", "="), name="ex_tags_name", using="btree")),
        found=False,
        note="write `op.create_exclude_constraint()`",
    ),
}


def metadata(define: Define) -> MetaData:
    result = MetaData(naming_convention=Base.metadata.naming_convention)
    define(result)
    return result


def migrations(connection: Connection, target: MetaData) -> tuple[str, str]:
    """Return the code of upgrade() and downgrade() that autogenerate writes."""
    context = MigrationContext.configure(connection, opts=OPTIONS | {"target_metadata": target})
    script = produce_migrations(context, target)
    OPTIONS["process_revision_directives"](context, (), [script])
    assert isinstance(script.upgrade_ops, UpgradeOps)
    assert isinstance(script.downgrade_ops, DowngradeOps)
    render = {"render_item": OPTIONS["render_item"], "migration_context": context}
    connection.commit()
    return render_python_code(script.upgrade_ops, **render), render_python_code(script.downgrade_ops, **render)


def run(connection: Connection, code: str) -> None:
    context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
    with context.begin_transaction(_per_migration=True), Operations.context(context) as operations:
        names = {"op": operations, "sa": sa, "postgresql": postgresql, "TableReference": TableReference}
        exec(f"def change():\n    {code}\nchange()", names)


@pytest.mark.filterwarnings("ignore:Computed default")
@pytest.mark.parametrize("name", CASES)
def test_autogenerate_finds_the_change_and_what_it_writes_works(name: str, empty_database: URL) -> None:
    case = CASES[name]
    before, after = metadata(case.before), metadata(case.after)
    engine = sa.create_engine(empty_database.set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    with engine.connect() as connection:
        before.create_all(connection)
        connection.commit()
        upgrade, downgrade = migrations(connection, after)
        assert (re.sub(r"#.*|pass|\s", "", upgrade) != "") == (case.found or name == "renamed column"), upgrade
        for code, target in ((upgrade, after), (downgrade, before), (upgrade, after)):
            run(connection, code)
            left, _ = migrations(connection, target)
            assert re.sub(r"#.*|pass|\s", "", left) == "", left


def test_table_of_the_documentation_is_up_to_date() -> None:
    rows = ["| change | found | if not |", "| --- | --- | --- |"]
    rows += [f"| {name} | {'yes' if case.found else '**no**'} | {case.note} |" for name, case in CASES.items()]

    assert "\n".join(rows) in (PROJECT_ROOT / "docs/migrations.md").read_text(), "\n".join(rows)
