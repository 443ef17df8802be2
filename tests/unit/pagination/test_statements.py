"""Declarations of lists: what is refused, and which statements are built."""

from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Float,
    ForeignKey,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Uuid,
    bindparam,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column
from sqlalchemy.types import TypeDecorator, TypeEngine

from app.database import Database
from app.pagination.statements import ListStatements, has_trigram


class _Base(DeclarativeBase):
    pass


class Lowered(TypeDecorator[str]):
    impl = String
    cache_ok = True


class Author(_Base):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]


class Book(_Base):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    shelf: Mapped[str | None]
    printed: Mapped[int] = mapped_column("printed_in")
    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
    published: Mapped[bool]


_Editor = aliased(Author)
BOOKS = select(Book.id, Book.title, Book.shelf, Book.printed)
NONE: frozenset[str] = frozenset()


def declare(rows: Any = BOOKS, key: Any = Book.id, filters: Any = None, counted: Any = None, **sorts: Any) -> Any:
    return ListStatements("books", rows, key=key, sorts=sorts, filters=filters or {}, counted=counted)


def list_with(kind: TypeEngine[Any]) -> ListStatements:
    """Declare a list that is sorted by a column of this type."""

    class _Own(DeclarativeBase):
        pass

    class Thing(_Own):
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(kind)

    return ListStatements(
        "things", select(Thing.id, Thing.value), key=Thing.id, sorts={"value": Thing.value}, filters={}
    )


@pytest.mark.parametrize(
    "kind",
    [
        Interval(),
        LargeBinary(),
        JSONB(),
        ARRAY(String()),
        Numeric(asdecimal=False),
        Float(asdecimal=True),
        Lowered(),
    ],
    ids=str,
)
def test_type_that_a_cursor_cannot_store_is_refused(kind: TypeEngine[Any]) -> None:
    with pytest.raises(ValueError, match=r"list 'things': a cursor cannot store .*it can store integers"):
        list_with(kind)


@pytest.mark.parametrize("kind", [Uuid(), String(), Numeric(10, 2), Float()], ids=str)
def test_type_that_a_cursor_can_store_is_accepted(kind: TypeEngine[Any]) -> None:
    assert len(list_with(kind).order("-value").columns) == 2


REFUSED = {
    "column that the rows lack": ({"rows": select(Book.id), "title": Book.title}, "must select Book.title"),
    "key that the rows lack": ({"rows": select(Book.title), "title": Book.title}, "must select Book.id"),
    "key of another table": (
        {"rows": select(Author.id, Book.title).join(Author, Author.id == Book.author_id), "title": Book.title},
        "must select Book.id",
    ),
    "name that two columns have": (
        {"rows": select(Author.id, Book.id, Book.title).select_from(Book).join(Author), "title": Book.title},
        r"must select Book.id once.*label\(\)",
    ),
    "column under two names": (
        {"rows": select(Book.id, Book.title, Book.title.label("again")), "title": Book.title},
        "must select Book.title once",
    ),
    "nullable key": ({"key": Book.shelf, "title": Book.title}, "the key Book.shelf can be NULL"),
    "key after an outer join": (
        {"rows": select(Author.id, Book.title).select_from(Book).outerjoin(Author), "key": Author.id},
        "the key Author.id can be NULL",
    ),
    "filter named limit": ({"filters": {"limit": Book.id == bindparam("limit")}}, "cannot be named 'limit'"),
    "filter named after_0": ({"filters": {"after_0": Book.id == bindparam("after_0")}}, "cannot be named 'after_0'"),
    "filter of a table that is not joined": (
        {"filters": {"name": Author.name == bindparam("name")}},
        "lacks a table of the filter 'name'",
    ),
    "filter of a table that is not counted": (
        {
            "rows": BOOKS.join(Author, Author.id == Book.author_id),
            "counted": select(Book.id),
            "filters": {"name": Author.name == bindparam("name")},
        },
        "lacks a table of the filter 'name'",
    ),
}


@pytest.mark.parametrize(("declaration", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_declaration_that_would_go_wrong_is_refused(declaration: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"list 'books': .*{reason}"):
        declare(**declaration)


def test_rows_that_are_entities_are_refused() -> None:
    with pytest.raises(TypeError, match="the entity Book"):
        declare(select(Book), title=Book.title)


def test_unknown_sort_order_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="list 'books': it is not declared with the sort order '-price'"):
        declare(title=Book.title).first_page("-price", NONE)


def test_columns_are_found_under_their_names_in_the_rows() -> None:
    rows = select(Book.id.label("number"), Book.printed, Author.name.label("author_name")).join(
        Author, Author.id == Book.author_id
    )
    books = declare(rows, printed=Book.printed, author=Author.name, id=Book.id)

    names = {sort: [column.name for column in books.order(sort).columns] for sort in ("printed", "-author", "id")}
    assert names == {"printed": ["printed_in", "number"], "-author": ["author_name", "number"], "id": ["number"]}


def test_composite_key_is_compared_whole_and_sort_column_of_it_once() -> None:
    books = declare(key=(Book.title, Book.id), printed=Book.printed, id=Book.id)

    after_printed = str(books.page_after("printed", NONE))
    assert "(books.printed_in, books.title, books.id) > (:after_0, :after_1, :after_2)" in after_printed
    assert "ORDER BY books.id DESC, books.title DESC" in str(books.page_after("-id", NONE))


@pytest.mark.parametrize(
    ("rows", "nullable"),
    [
        (select(Book.id, Author.name).join(Author), False),
        (select(Book.id, Author.name).outerjoin(Author), True),
        (select(Book.id, Author.name).join(Author).outerjoin(_Editor, _Editor.id > Book.id), False),
    ],
    ids=["inner join", "outer join", "outer join of another table"],
)
def test_column_is_nullable_after_an_outer_join(rows: Any, nullable: bool) -> None:
    assert declare(rows, author=Author.name).order("author").nullable == nullable


def test_nullable_column_is_read_in_two_parts() -> None:
    books = declare(shelf=Book.shelf)

    assert "books.shelf IS NOT NULL ORDER BY books.shelf DESC, books.id DESC" in _sql(books.first_page("-shelf", NONE))
    assert "books.shelf IS NULL AND books.id < :after_1 ORDER BY" in _sql(
        books.page_after("-shelf", NONE, None, "nulls")
    )
    assert "ORDER BY books.shelf DESC NULLS LAST, books.id DESC" in _sql(books.by_offset("-shelf", NONE))


def _sql(statement: Any) -> str:
    return " ".join(str(statement).split())


def test_statement_of_an_order_and_filters_is_built_once() -> None:
    books = declare(title=Book.title)

    assert books.page_after("title", NONE, 21) is books.page_after("title", NONE, 21)
    assert books.page_after("title", NONE, 21) is not books.page_after("-title", NONE, 21)
    assert books.first_page("title", NONE) is not books.first_page("title", NONE, 21)


async def test_total_counts_the_rows_of_the_list(database: Database) -> None:
    """The rows have a condition and a join of their own; the filter is of the joined table."""
    connection: Any = database.read._engine
    await connection.run_sync(_Base.metadata.create_all)
    await connection.execute(insert(Author), [{"id": 1, "name": "Ann"}, {"id": 2, "name": "Bob"}])
    books = [(1, 1, True), (2, 1, True), (3, 2, True), (4, 1, False), (5, None, True)]
    columns = ("id", "author_id", "published")
    more = {"title": "", "printed_in": 0}
    await connection.execute(insert(Book), [dict(zip(columns, book, strict=True)) | more for book in books])
    listed = declare(
        BOOKS.join(Author, Author.id == Book.author_id).where(Book.published),
        filters={"name": Author.name == bindparam("name")},
        title=Book.title,
    )

    assert (await database.read.all(listed.count(NONE)))[0]["total"] == 3
    assert (await database.read.all(listed.count(frozenset({"name"})), name="Ann"))[0]["total"] == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("abc", True),
        ("ab1", True),
        ("x über", True),
        ("東京駅", True),
        ("", False),
        ("ab", False),
        ("ab cd", False),
        ("a_b_c", False),
        ("%%%", False),
    ],
)
def test_trigram_takes_three_letters_or_digits_in_a_row(text: str, found: bool) -> None:
    assert has_trigram(text) is found
