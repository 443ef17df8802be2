from collections.abc import AsyncIterator, Iterator

import pytest
from alembic.config import Config
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database, PoolOptions, make_engine
from app.domains.users import passwords
from app.main import create_app
from app.settings import Settings
from tests.support.postgres import PgBouncer, Server, as_role, run_pgbouncer, run_postgres
from tests.support.proxy import Proxy

SECRET_KEY = "for tests only, for tests only, for tests only"


@pytest.fixture(scope="session", autouse=True)
def hashes_as_deployed() -> Iterator[dict[str, object]]:
    """A password's hash takes a tenth of a second by design, and most tests sign people up and in: here it takes none.

    What it is as deployed, by the names that `passwords` has for it.
    """
    deployed = {name: getattr(passwords, name) for name in ("_argon2", "_NOBODYS")}
    quick = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_argon2", quick)
        patch.setattr(passwords, "_NOBODYS", quick.hash("nobody's"))
        yield deployed


@pytest.fixture
def real_hashes(hashes_as_deployed: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that is about what they cost."""
    for name, value in hashes_as_deployed.items():
        monkeypatch.setattr(passwords, name, value)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def alembic_config() -> Config:
    return Config(toml_file="pyproject.toml")


@pytest.fixture(scope="session")
def migrated_template(postgres: Server) -> Iterator[str]:
    """The name of a database with roles and tables, to be copied: faster than migrating one for each test."""
    with postgres.migrated() as url:
        assert url.database
        yield url.database


@pytest.fixture(scope="session")
def pgbouncer(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    with run_pgbouncer(postgres, tmp_path_factory.mktemp("pgbouncer")) as pgbouncer:
        yield pgbouncer


@pytest.fixture(params=["asyncpg", "psycopg", "asyncpg-pgbouncer", "psycopg-pgbouncer"])
def way(request: pytest.FixtureRequest) -> str:
    """A way to the database: a driver, directly or behind PgBouncer."""
    return str(request.param)


@pytest.fixture
def driver(way: str) -> str:
    return way.partition("-")[0]


@pytest.fixture
def database_url(request: pytest.FixtureRequest, postgres: Server, migrated_template: str, way: str) -> Iterator[URL]:
    """A migrated database of the test's own, as the API connects to it."""
    driver, _, pooler = way.partition("-")
    with postgres.database(template=migrated_template) as url:
        url = as_role(url, "headroom_app").set(drivername=f"postgresql+{driver}")
        yield request.getfixturevalue("pgbouncer").url(url) if pooler else url


@pytest.fixture
def empty_database(postgres: Server) -> Iterator[URL]:
    with postgres.database() as url:
        yield url


@pytest.fixture
async def engine(database_url: URL) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(url=database_url, application_name="headroom:test", pool=PoolOptions(timeout=0.5))
    yield engine
    await engine.dispose()


@pytest.fixture
def database(engine: AsyncEngine) -> Database:
    return Database(engine)


@pytest.fixture
async def proxy(database_url: URL) -> AsyncIterator[Proxy]:
    """A way to the test's database that can hang, and that counts."""
    async with Proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def app(database_url: URL) -> AsyncIterator[FastAPI]:
    """The application as it is deployed, its lifespan running; the test may add routes."""
    app = create_app(
        Settings(
            database_url=database_url, secret_key=SECRET_KEY, db_pool_size=2, db_max_overflow=1, db_pool_timeout=0.5
        )
    )
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client
