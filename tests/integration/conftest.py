"""Integration tests run on a real PostgreSQL server, each test in a database of its own."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database, PoolOptions, make_engine
from app.main import create_app
from app.settings import Settings
from tests.support.hashing import deployed_hashing as deployed_hashing
from tests.support.hashing import real_hashes as real_hashes
from tests.support.postgres import PgBouncer, Server, as_role, run_pgbouncer, run_postgres
from tests.support.proxy import Proxy

SECRET_KEY = "for tests only, for tests only, for tests only"
# Longer than a connect takes on a busy machine. A test about the pool's timeout sets its own.
POOL_TIMEOUT = 10.0


@pytest.fixture(scope="session")
def postgres(new_directory: Callable[[], Path]) -> Iterator[Server]:
    """Run a PostgreSQL server for this test process."""
    with run_postgres(new_directory()) as server:
        yield server


@pytest.fixture(scope="session")
def alembic_config() -> Config:
    return Config(toml_file="pyproject.toml")


@pytest.fixture(scope="session")
def migrated_template(postgres: Server) -> Iterator[str]:
    """Return the name of a database with roles and tables. Copying it is faster than migrating another."""
    with postgres.migrated() as url:
        assert url.database
        yield url.database


@pytest.fixture(scope="session")
def pgbouncer(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    with run_pgbouncer(postgres, tmp_path_factory.mktemp("pgbouncer")) as pgbouncer:
        yield pgbouncer


@pytest.fixture
def database_setup() -> str:
    """Return the driver, followed by "-pgbouncer" if its connections go through PgBouncer.

    A test directory, file or test that depends on the driver or on PgBouncer overrides this.
    """
    return "asyncpg"


@pytest.fixture
def database_url(
    request: pytest.FixtureRequest, postgres: Server, migrated_template: str, database_setup: str
) -> Iterator[URL]:
    """Create a migrated database for the test; return the URL with which the API connects to it."""
    driver, _, pgbouncer = database_setup.partition("-")
    with postgres.database(template=migrated_template) as url:
        url = as_role(url, "headroom_app").set(drivername=f"postgresql+{driver}")
        yield request.getfixturevalue("pgbouncer").url(url) if pgbouncer else url


@pytest.fixture
def empty_database(postgres: Server) -> Iterator[URL]:
    with postgres.database() as url:
        yield url


@pytest.fixture
async def engine(database_url: URL) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(url=database_url, application_name="headroom:test", pool=PoolOptions(timeout=POOL_TIMEOUT))
    yield engine
    await engine.dispose()


@pytest.fixture
def database(engine: AsyncEngine) -> Database:
    return Database(engine)


@pytest.fixture
async def proxy(database_url: URL) -> AsyncIterator[Proxy]:
    """Run a TCP proxy in front of the test's database. It can hang, and it counts."""
    async with Proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def app(database_url: URL) -> AsyncIterator[FastAPI]:
    """Start the application with its lifespan, on a pool of three connections. The test may add routes."""
    app = create_app(
        Settings(
            database_url=database_url,
            secret_key=SECRET_KEY,
            db_pool_size=2,
            db_max_overflow=1,
            db_pool_timeout=POOL_TIMEOUT,
        )
    )
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client
