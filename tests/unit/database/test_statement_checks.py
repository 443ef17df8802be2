"""A session refuses a statement that it would answer wrongly, and says what to do instead."""

import re
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Integer, bindparam, exists, func, insert, literal_column, select, text, union, update
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    Bundle,
    DeclarativeBase,
    Mapped,
    aliased,
    column_property,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
    synonym,
    with_loader_criteria,
)

from app.database import Database
from app.database.statement_checks import is_plain, require_entity, require_returning, require_select


class _Base(DeclarativeBase):
    pass


class Writer(_Base):
    __tablename__ = "writers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    folded = column_property(func.lower(literal_column("writers.name")))

    @hybrid_property
    def shouted(self) -> str:
        return self.name.upper()

    @shouted.inplace.expression
    @classmethod
    def _shouted(cls) -> Any:
        return func.upper(cls.name)


class Text(_Base):
    __tablename__ = "texts"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    writer_id: Mapped[int] = mapped_column(ForeignKey("writers.id"))
    heading: Mapped[str] = synonym("title")
    writer: Mapped[Writer] = relationship(lazy="raise")


_Other = aliased(Writer)

COLUMNS = {
    "attributes": select(Text.id, Text.title.label("x")),
    "attribute of an alias": select(_Other.id),
    "synonym": select(Text.heading),
    "hybrid": select(Writer.shouted),
    "column property": select(Writer.folded),
    "columns of a table": select(Writer.__table__),
    "columns of a subquery": select(select(Text).subquery()),
    "function": select(func.count()).select_from(Text),
    "exists": select(exists(select(Text.id))),
    "join": select(Text.id, Writer.name).join(Text.writer),
    "union": union(select(Text.id), select(Writer.id)),
    "criteria": select(Text.id).options(with_loader_criteria(Text, Text.id > 1)),
    "literal": select(text("1"), literal_column("2")),
}
ENTITIES = {
    "entity": (select(Text), "the entity Text"),
    "entity with columns": (select(Writer.id, Text), "the entity Text"),
    "alias": (select(_Other), "the entity Writer"),
    "bundle": (select(Bundle("both", Text.id, Text.title)), "the bundle both"),
    "relationship": (select(Text.writer), "the relationship Text.writer"),
    "selectinload": (select(Text).options(selectinload(Text.writer)), "the entity Text"),
    "joinedload": (select(Text).options(joinedload(Text.writer)), "the entity Text"),
    "option that does not fit": (select(Text.id).options(load_only(Text.id)), "options()"),
    "union of entities": (union(select(Text), select(Text)), "the entity Text"),
}


@pytest.mark.parametrize("statement", COLUMNS.values(), ids=COLUMNS.keys())
def test_statement_of_columns_is_accepted_by_a_read(statement: Any) -> None:
    require_select(statement)


@pytest.mark.parametrize(("statement", "found"), ENTITIES.values(), ids=ENTITIES.keys())
def test_statement_of_entities_is_refused_with_the_remedy(statement: Any, found: str) -> None:
    with pytest.raises(TypeError, match=re.escape(found)) as refused:
        require_select(statement)

    assert "ReadSession.entities()" in str(refused.value)
    assert "statement: " in str(refused.value)


@pytest.mark.parametrize("skip_locked", [True, False])
def test_read_with_a_lock_is_refused(skip_locked: bool) -> None:
    with pytest.raises(TypeError, match="use a write session"):
        require_select(select(Text.id).with_for_update(skip_locked=skip_locked))
    with pytest.raises(TypeError, match="use a write session"):
        require_entity(select(Text).with_for_update(skip_locked=skip_locked))


@pytest.mark.parametrize(
    ("statement", "remedy"),
    [
        (insert(Text), "add returning"),
        (insert(Text).returning(Text), "return its columns"),
        (update(Writer).values(name="x").returning(Writer), "return its columns"),
        (select(Text.id), "use ReadSession"),
    ],
    ids=["without returning", "entity", "entity of an update", "select"],
)
def test_statement_session_refuses_what_it_cannot_return(statement: Any, remedy: str) -> None:
    with pytest.raises(TypeError, match=remedy):
        require_returning(statement)


def test_statement_session_accepts_returned_columns() -> None:
    require_returning(insert(Text).returning(Text.id))


def test_read_session_refuses_a_write() -> None:
    with pytest.raises(TypeError, match=re.escape("StatementSession.returned()")):
        require_select(insert(Text).returning(Text.id))


@pytest.mark.parametrize("statement", [select(Text), select(_Other), select(Text).options(joinedload(Text.writer))])
def test_statement_of_one_entity_is_accepted(statement: Any) -> None:
    require_entity(statement)


@pytest.mark.parametrize("statement", [select(Text.id), select(Text, Writer), select(func.count()), text("SELECT 1")])
def test_statement_of_anything_else_is_refused_as_entities(statement: Any) -> None:
    with pytest.raises(TypeError, match=re.escape("ReadSession.all()")):
        require_entity(statement)


def test_long_statement_is_quoted_in_part() -> None:
    long = select(Text, *(literal_column(f"{number}", type_=Integer) for number in range(200)))

    with pytest.raises(TypeError) as refused:
        require_select(long)

    assert len(str(refused.value)) < 500


def test_statement_with_options_is_not_plain() -> None:
    ids = select(Text.id)

    assert is_plain(ids)
    assert not is_plain(ids.execution_options(schema_translate_map={None: "other"}))
    assert not is_plain(ids.options(with_loader_criteria(Text, Text.id > 1)))


async def test_sessions_on_sqlite_refuse_the_same_statements(database: Database) -> None:
    with pytest.raises(TypeError, match="the entity Text"):
        await database.read.all(select(Text))
    with pytest.raises(TypeError, match="the entity Text"):
        await database.read.first(select(Text).where(Text.id == bindparam("id")), id=1)
    with pytest.raises(TypeError, match="the entity Text"):
        await database.statement.returned(insert(Text).returning(Text))
