"""Load rows in bulk, with COPY, which takes seconds where INSERT takes minutes. `app/cli/samples.py` has the rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from psycopg import sql
from sqlalchemy import URL
from tqdm import tqdm

from app.database.conninfo import parameters
from app.errors import ConfigurationError, DatabaseUnavailable, HeadroomError

APPLICATION_NAME = "headroom:seed"
# Indexes are created after the rows if at least LARGE_LOAD rows are added, and at least LARGE_SHARE times the number of
# existing rows.
LARGE_LOAD, LARGE_SHARE = 50_000, 4
SampleRow = tuple[object, ...]


class SampleTable(NamedTuple):
    """Rows to add to a table.

    `rows` is called with a connection, which it may query before it returns, and with the ids of the rows.
    """

    name: str
    columns: tuple[str, ...]
    size: int
    rows: Callable[[psycopg.Connection, list[int]], Iterator[SampleRow]]


def load(*, url: URL, tables: Sequence[SampleTable]) -> None:
    """Add rows to the tables, the first one first, in one transaction.

    Raise ConfigurationError for another database than PostgreSQL. Raise DatabaseUnavailable if the server cannot be
    reached, HeadroomError if the database was not migrated.
    """
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(f"DATABASE_URL: seeding needs PostgreSQL, got {url.get_backend_name()}")
    # psycopg whatever the URL's driver, so that there is one implementation of COPY.
    address = parameters(url) | {"application_name": APPLICATION_NAME}
    try:
        with psycopg.connect(**address) as connection:
            for table in tables:
                rows = table.rows(connection, _reserve_ids(connection, table.name, table.size))
                with _later_indexes(connection, table.name, table.size):
                    _copy(connection, table.name, table.columns, rows, table.size)
                # Checks of foreign keys to it are planned next. Without statistics they would read the whole table.
                connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table.name)))
        with psycopg.connect(**address, autocommit=True) as connection:
            # Update the planner's statistics now: autovacuum would do so only within a minute.
            names = sql.SQL(", ").join(sql.Identifier(table.name) for table in tables)
            connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(names))
    except psycopg.errors.UndefinedTable:
        raise HeadroomError("the database has no tables: migrate it first (make migrate)") from None
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"cannot seed {url!r}: {error}") from error
    except psycopg.Error as error:
        raise HeadroomError(f"cannot seed {url!r}: {error}") from error


def _reserve_ids(connection: psycopg.Connection, table: str, count: int) -> list[int]:
    """Return ids from the table's sequence, so that they do not collide with those of a running API."""
    query = "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)"
    return [row[0] for row in connection.execute(query, (table, count))]


@contextmanager
def _later_indexes(connection: psycopg.Connection, table: str, rows: int) -> Iterator[None]:
    """Drop the indexes before a large load, and create them after it. Other clients wait for the table until then.

    Adding rows to a trigram index row by row takes most of the time of the load. Indexes of constraints stay.
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
