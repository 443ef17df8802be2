"""Reads with relationships: entities of a read session, without a transaction."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import URL, Column, ForeignKey, Integer, Table, bindparam, event, func, inspect, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    joinedload,
    mapped_column,
    object_session,
    relationship,
    selectinload,
)
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlalchemy.sql.base import ExecutableOption

from app.database import Database, PoolOptions, make_engine
from app.errors import DatabaseUnavailable, StatementTimeout
from tests.integration.conftest import POOL_TIMEOUT
from tests.integration.database.helpers import create_tables, state, wait_until
from tests.support.postgres import connect
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async


class _Base(DeclarativeBase):
    pass


_article_tags = Table(
    "test_article_tags",
    _Base.metadata,
    Column("article_id", ForeignKey("test_articles.id"), primary_key=True),
    Column("tag_id", ForeignKey("test_article_labels.id"), primary_key=True),
)


class Writer(_Base):
    __tablename__ = "test_writers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    password_hash: Mapped[str]


class Label(_Base):
    __tablename__ = "test_article_labels"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Article(_Base):
    __tablename__ = "test_articles"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    text: Mapped[str] = mapped_column(default="", deferred=True)
    writer_id: Mapped[int] = mapped_column(ForeignKey("test_writers.id"))
    writer: Mapped[Writer] = relationship(lazy="raise")
    labels: Mapped[list[Label]] = relationship(secondary=_article_tags, order_by=Label.name)


ARTICLES = select(Article).order_by(Article.id)
WITH_LABELS = ARTICLES.options(selectinload(Article.labels))
# The number of rows keeps PostgreSQL from skipping the function.
SLOW = ARTICLES.where(func.pg_sleep(bindparam("seconds", type_=Integer())).is_not(None))


@pytest.fixture
def articles(database_url: URL) -> None:
    create_tables(database_url, _Base.metadata)
    with connect(database_url) as admin:
        admin.execute("INSERT INTO test_writers VALUES (1, 'Ann', 'secret'), (2, 'Bob', 'secret')")
        admin.execute("INSERT INTO test_article_labels VALUES (1, 'new'), (2, 'hot')")
        admin.execute("INSERT INTO test_articles VALUES (1, 'a', '', 1), (2, 'b', '', 2), (3, 'c', '', 1)")
        admin.execute("INSERT INTO test_article_tags VALUES (1, 1), (1, 2), (2, 1)")


pytestmark = pytest.mark.usefixtures("articles")


@pytest.mark.parametrize("load", [selectinload, joinedload])
async def test_collection_is_loaded_and_each_entity_comes_once(
    database: Database, load: Callable[..., ExecutableOption]
) -> None:
    found = await database.read.entities(ARTICLES.options(load(Article.labels)))

    assert [(article.id, [label.name for label in article.labels]) for article in found] == [
        (1, ["hot", "new"]),
        (2, ["new"]),
        (3, []),
    ]


async def test_many_to_one_is_loaded(database: Database) -> None:
    found = await database.read.entities(ARTICLES.options(joinedload(Article.writer)))

    assert [article.writer.name for article in found] == ["Ann", "Bob", "Ann"]
    assert found[0].writer is found[2].writer


async def test_parameters_are_bound_and_first_entity_is_returned(database: Database) -> None:
    by_title = WITH_LABELS.where(Article.title == bindparam("title"))

    article = await database.read.entity(by_title, title="b")

    assert article is not None
    assert [label.name for label in article.labels] == ["new"]
    assert await database.read.entity(by_title, title="none") is None


async def test_entities_of_a_list_of_keys_are_read(database: Database) -> None:
    among = WITH_LABELS.where(Article.id.in_(bindparam("ids", expanding=True)))

    assert [article.id for article in await database.read.entities(among, ids=[3, 1])] == [1, 3]
    assert await database.read.entities(among, ids=[]) == []


async def test_entities_are_read_outside_a_transaction_on_one_connection(proxy: Proxy) -> None:
    engine = make_engine(url=proxy.url, application_name="headroom:test", pool=PoolOptions(timeout=POOL_TIMEOUT))
    database = Database(engine)
    await database.read.entities(WITH_LABELS)
    executed, opened = proxy.executed, proxy.opened

    await database.read.entities(WITH_LABELS)

    assert proxy.executed - executed == 2, "the SELECT and the one of selectinload(), without BEGIN and COMMIT"
    assert proxy.opened == opened
    assert state(database).used == 0
    await engine.dispose()


async def test_write_after_a_read_of_entities_commits(database: Database, database_url: URL) -> None:
    """The read leaves psycopg's connection in autocommit mode."""
    await database.read.entities(WITH_LABELS)
    with pytest.raises(LookupError):
        async with database.write() as session:
            session.add(Writer(id=3, name="Cy", password_hash=""))
            await session.flush()
            raise LookupError
    async with database.write() as session:
        session.add(Writer(id=4, name="Dan", password_hash=""))

    with connect(database_url) as admin:
        assert admin.execute("SELECT id FROM test_writers ORDER BY id").fetchall() == [(1,), (2,), (4,)]


async def test_what_the_options_did_not_load_cannot_be_loaded_later(database: Database) -> None:
    article = await database.read.entity(ARTICLES)

    assert article is not None
    assert inspect(article).detached
    with pytest.raises(InvalidRequestError, match="lazy='raise'"):
        _ = article.writer
    with pytest.raises(DetachedInstanceError):
        _ = article.labels
    with pytest.raises(DetachedInstanceError):
        _ = article.text
    assert state(database).used == 0


@pytest.fixture
def flushing_handler() -> Iterator[None]:
    def flush(article: Article, _: object) -> None:
        article.title = "changed"
        session = object_session(article)
        assert session is not None
        session.flush()

    event.listen(Article, "load", flush)
    yield
    event.remove(Article, "load", flush)


@pytest.mark.usefixtures("flushing_handler")
async def test_flush_while_entities_are_loaded_raises(database: Database) -> None:
    with pytest.raises(RuntimeError, match="does not write"):
        await database.read.entities(ARTICLES)

    assert state(database).used == 0


async def test_change_of_a_loaded_entity_is_not_written(database: Database, database_url: URL) -> None:
    article = await database.read.entity(ARTICLES)
    assert article is not None
    article.title = "changed"
    await database.read.entities(ARTICLES)

    with connect(database_url) as admin:
        assert admin.execute("SELECT title FROM test_articles WHERE id = 1").fetchone() == ("a",)


async def sleeping_backend(database_url: URL) -> int:
    with connect(database_url) as admin:

        async def find() -> int | None:
            row = admin.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            ).fetchone()
            return row[0] if row else None

        return await eventually_async(find, within=60) or 0


async def test_statement_timeout_of_a_read_of_entities_is_translated(database: Database, database_url: URL) -> None:
    with connect(database_url) as admin:
        admin.execute(f"ALTER ROLE headroom_app IN DATABASE {database_url.database} SET statement_timeout = '300ms'")

    with pytest.raises(StatementTimeout):
        await database.read.entities(SLOW, seconds=30)


async def test_connection_lost_in_a_read_of_entities_is_translated(database: Database, database_url: URL) -> None:
    reading = asyncio.create_task(database.read.entities(SLOW, seconds=30))
    pid = await sleeping_backend(database_url)
    with connect(database_url) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 30000)", (pid,))

    with pytest.raises(DatabaseUnavailable):
        await reading
    assert state(database).used == 0


async def test_read_of_entities_cancelled_repeatedly_frees_its_slot(database: Database, database_url: URL) -> None:
    reading = asyncio.create_task(database.read.entities(SLOW, seconds=30))
    await sleeping_backend(database_url)
    while not reading.done():
        reading.cancel()
        await asyncio.sleep(0)

    await wait_until(lambda: state(database).used == 0)
    assert len(await database.read.entities(ARTICLES)) == 3


async def test_rows_of_entities_are_refused(database: Database) -> None:
    """A row would have the columns of joined entities too, password hashes included."""
    for statement in (ARTICLES, WITH_LABELS, ARTICLES.options(joinedload(Article.writer))):
        with pytest.raises(TypeError, match="the entity Article"):
            await database.read.all(statement)
    assert state(database).used == 0
