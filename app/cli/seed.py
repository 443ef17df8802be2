"""`headroom seed`: add plausible data in bulk, with COPY, which takes seconds where INSERT takes minutes."""

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random

import psycopg
from psycopg import sql
from sqlalchemy import URL
from tqdm import tqdm

from app.database.conninfo import parameters
from app.domains.users.passwords import hash_password
from app.errors import ConfigurationError, DatabaseUnavailable, HeadroomError

APPLICATION_NAME = "headroom:seed"
HISTORY = timedelta(days=730)
# Indexes are created after the rows if at least LARGE_LOAD rows are added, and at least LARGE_SHARE times the number of
# existing rows.
LARGE_LOAD, LARGE_SHARE = 50_000, 4
FIRST_NAMES = (
    "Ada Alan Barbara Claude Donald Edsger Frances Grace Hedy Ivan John Katherine Leslie Margaret Niklaus Radia Shafi "
    "Tim Vint Yukihiro"
).split()
LAST_NAMES = (
    "Allen Berners Cerf Dijkstra Goldwasser Hamilton Hopper Johnson Knuth Lamport Liskov Lovelace Matsumoto Neumann "
    "Perlman Shannon Sutherland Turing Wirth"
).split()
WORDS = (
    "a after already always an and answer backend because before budget by cache client commit connection count cursor "
    "database deadline deploy driver each error every exporter fast for from graceful headroom idle in index is it job "
    "keeps latency limit lock migration never nobody of on one overflow page pool query queue read replica request "
    "restart row server session slow statement table that the timeout to transaction under until wait when while with "
    "worker write"
).split()

SampleRow = tuple[object, ...]


def seed(*, url: URL, users: int, posts: int) -> str:
    """Add users and posts in one transaction, and return the password of all new users.

    Raise ConfigurationError for another database than PostgreSQL, and for posts without any user to write them.
    Raise DatabaseUnavailable if the server cannot be reached, HeadroomError if the database was not migrated.
    """
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(f"DATABASE_URL: seeding needs PostgreSQL, got {url.get_backend_name()}")
    password = secrets.token_urlsafe(12)
    password_hash = asyncio.run(hash_password(password))
    random = Random()  # noqa: S311 - plausible, not secret
    start = datetime.now(UTC) - HISTORY
    # psycopg whatever the URL's driver, so that there is one implementation of COPY.
    address = parameters(url) | {"application_name": APPLICATION_NAME}
    try:
        with psycopg.connect(**address) as connection:
            user_ids = _reserve_ids(connection, "users", users)
            rows = _user_rows(random, user_ids, start, password_hash)
            columns = ("id", "email", "name", "password_hash", "created_at", "updated_at")
            with _later_indexes(connection, "users", users):
                _copy(connection, "users", columns, rows, users)
            # The checks of the foreign key are planned now. Without statistics they would read the whole table.
            connection.execute("ANALYZE users")
            authors = [row[0] for row in connection.execute("SELECT id FROM users ORDER BY id")]
            if posts and not authors:
                raise ConfigurationError("--posts: there is no user to write them; add users with --users")
            post_ids = _reserve_ids(connection, "posts", posts)
            rows = _post_rows(random, post_ids, authors, start)
            columns = ("id", "author_id", "title", "content", "created_at", "updated_at")
            with _later_indexes(connection, "posts", posts):
                _copy(connection, "posts", columns, rows, posts)
        with psycopg.connect(**address, autocommit=True) as connection:
            # Update the planner's statistics now: autovacuum would do so only within a minute.
            connection.execute("VACUUM (ANALYZE) users, posts")
    except psycopg.errors.UndefinedTable:
        raise HeadroomError("the database has no tables: migrate it first (make migrate)") from None
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"cannot seed {url!r}: {error}") from error
    except psycopg.Error as error:
        raise HeadroomError(f"cannot seed {url!r}: {error}") from error
    return password


def _reserve_ids(connection: psycopg.Connection, table: str, count: int) -> list[int]:
    """Return ids from the table's sequence, so that they do not collide with those of a running API."""
    query = "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)"
    return [row[0] for row in connection.execute(query, (table, count))]


@contextmanager
def _later_indexes(connection: psycopg.Connection, table: str, rows: int) -> Iterator[None]:
    """Drop the indexes before a large load, and create them after it. Other clients wait for the table until then.

    Adding posts to the trigram index row by row takes most of the time of the load. Indexes of constraints stay.
    """
    [(existing,)] = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchall()
    if rows < max(LARGE_LOAD, existing * LARGE_SHARE):
        yield
        return
    query = (
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = %s::regclass AND NOT indisunique AND NOT indisprimary"
    )
    indexes = connection.execute(query, (table,)).fetchall()
    for name, _ in indexes:
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.SQL(name)))
    yield
    connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
    for _, definition in tqdm(indexes, desc=f"indexes of {table}", unit=" indexes", disable=None):
        connection.execute(definition)


def _copy(
    connection: psycopg.Connection, table: str, columns: tuple[str, ...], rows: Iterable[SampleRow], count: int
) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in tqdm(rows, desc=table, total=count, unit=" rows", unit_scale=True, disable=None):
            copy.write_row(row)


def _user_rows(random: Random, ids: list[int], start: datetime, password_hash: str) -> Iterator[SampleRow]:
    for user_id in ids:
        first, last = random.choice(FIRST_NAMES), random.choice(LAST_NAMES)
        signed_up = start - timedelta(seconds=random.randrange(365 * 86_400))
        email = f"{first}.{last}.{user_id}@example.com".lower()
        yield user_id, email, f"{first} {last}", password_hash, signed_up, signed_up


def _post_rows(random: Random, ids: list[int], authors: list[int], start: datetime) -> Iterator[SampleRow]:
    for number, post_id in enumerate(ids):
        # Squared, so that a few users write many posts and most users write few.
        author = authors[int(len(authors) * random.random() ** 2)]
        title = " ".join(random.choices(WORDS, k=random.randint(3, 8))).capitalize()
        content = " ".join(random.choices(WORDS, k=random.randint(20, 80))).capitalize() + "."
        # In the order of the ids, like rows that were written one after the other.
        written = start + HISTORY * (number / len(ids))
        yield post_id, author, title, content, written, written
