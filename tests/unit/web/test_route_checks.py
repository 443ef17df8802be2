"""The application does not start with a route that fails a check."""

from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from functools import partial
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Security, WebSocket
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from app.database import Database, WriteSession
from app.pagination.page import ListParams
from app.web.deps import DatabaseDep, ReadDb, WriteDb, get_database, get_db
from app.web.pagination import ListQuery
from app.web.route_checks import check_routes


class ThingListParams(ListParams):
    sort: Literal["name", "-name"] = "name"


async def plain_query_params(params: Annotated[ThingListParams, Query()]) -> ThingListParams:
    return params


async def service(db: WriteSession = Depends(get_db)) -> WriteSession:  # noqa: B008 - the mistake under test
    return db


async def list_with_plain_query(params: Annotated[ThingListParams, Query()]) -> None: ...
async def list_with_optional_plain_query(params: Annotated[ThingListParams | None, Query()]) -> None: ...
async def list_with_class_dependency(params: Annotated[ThingListParams, Depends()]) -> None: ...
async def list_with_nested_plain_query(params: Annotated[ThingListParams, Depends(plain_query_params)]) -> None: ...
async def write_with_default_scope(db: Annotated[WriteSession, Depends(get_db)]) -> None: ...
async def write_with_request_scope(db: Annotated[WriteSession, Depends(get_db, scope="request")]) -> None: ...
async def write_with_nested_default_scope(db: Annotated[WriteSession, Depends(service)]) -> None: ...
async def write_with_security(db: Annotated[WriteSession, Security(get_db)]) -> None: ...
async def correct(params: ListQuery[ThingListParams], db: WriteDb) -> None: ...


async def stream_with_write_session(db: WriteDb) -> AsyncIterator[int]:
    yield 1


async def own_transaction(database: DatabaseDep) -> AsyncIterator[WriteSession]:
    async with database.write() as session:
        yield session


async def helper_transaction(database: Annotated["Database", Depends(get_database)]) -> AsyncIterator[None]:
    yield


async def transaction_of_request(request: Request) -> AsyncIterator[WriteSession]:
    async with nullcontext(), request.app.state.database.write() as session:
        if session:
            yield session


async def two_transactions(request: Request) -> AsyncIterator[None]:
    """A transaction before the response and one afterwards: neither is open while it is sent."""
    async with request.app.state.database.write():
        pass
    yield
    async with request.app.state.database.write():
        pass


class Transaction:
    async def __call__(self, database: DatabaseDep) -> AsyncIterator[None]:
        yield

    async def method(self, database: DatabaseDep) -> AsyncIterator[None]:
        yield


def plain_generator(database: DatabaseDep) -> Iterator[None]:
    yield


async def reading(db: ReadDb) -> AsyncIterator[None]:
    yield


async def file_writer(request: Request) -> AsyncIterator[None]:
    with TemporaryFile() as file:
        file.write(b"x")
        yield


async def no_generator(database: DatabaseDep) -> Database:
    return database


def nested(dependency: Any, **options: Any) -> Any:
    async def service(value: Annotated[Any, Depends(dependency, **options)]) -> None: ...

    return service


PLAIN_QUERY = r"^/things takes ThingListParams without ListQuery"
LATE_COMMIT = r'^/things depends on get_db without scope="function"'
OWN_LATE_COMMIT = r'^/things depends on .*, which yields and can write: .*scope="function"'
OWN_TRANSACTIONS = {
    "a Database": own_transaction,
    "a Database, and a helper": helper_transaction,
    "the application's state": transaction_of_request,
    "an object": Transaction(),
    "a method": Transaction().method,
    "a partial": partial(own_transaction),
    "a plain generator": plain_generator,
}
HARMLESS = {
    "a read session": reading,
    "two transactions": two_transactions,
    "a file": file_writer,
    "no generator": no_generator,
}


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (list_with_plain_query, PLAIN_QUERY),
        (list_with_optional_plain_query, PLAIN_QUERY),
        (list_with_class_dependency, PLAIN_QUERY),
        (list_with_nested_plain_query, PLAIN_QUERY),
        (write_with_default_scope, LATE_COMMIT),
        (write_with_request_scope, LATE_COMMIT),
        (write_with_nested_default_scope, LATE_COMMIT),
        (write_with_security, LATE_COMMIT),
        (stream_with_write_session, "^/things streams its response and takes WriteDb"),
    ],
)
async def test_application_with_incorrect_route_does_not_start(app: FastAPI, endpoint: Any, message: str) -> None:
    app.add_api_route("/things", endpoint)

    with pytest.raises(RuntimeError, match=message):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize("way", ["route", "nested", "router", "application", "websocket"])
@pytest.mark.parametrize("dependency", OWN_TRANSACTIONS.values(), ids=OWN_TRANSACTIONS.keys())
def test_own_dependency_around_a_transaction_needs_function_scope(dependency: Any, way: str) -> None:
    def application(**options: Any) -> FastAPI:
        depends = Depends(nested(dependency, **options) if way == "nested" else dependency, **options)
        app = FastAPI(dependencies=[depends] if way == "application" else [])
        router = APIRouter(dependencies=[depends] if way == "router" else [])

        async def endpoint() -> None: ...
        async def socket(websocket: WebSocket) -> None: ...

        if way == "websocket":
            router.add_api_websocket_route("/things", socket, dependencies=[depends])
        else:
            router.add_api_route("/things", endpoint, dependencies=[depends] if way in ("route", "nested") else [])
        app.include_router(router)
        return app

    check_routes(application(scope="function"))
    with pytest.raises(RuntimeError, match=OWN_LATE_COMMIT):
        check_routes(application())


@pytest.mark.parametrize("dependency", HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_dependency_is_accepted(dependency: Any) -> None:
    app = FastAPI(dependencies=[Depends(dependency)])

    @app.get("/things")
    async def things(database: DatabaseDep) -> AsyncIterator[int]:
        async with database.write():
            yield 1

    check_routes(app)


@pytest.mark.parametrize("way", ["mount", "mount twice", "middleware", "router"])
def test_incorrect_route_of_mounted_application_is_refused(way: str) -> None:
    mounted, app = FastAPI(), FastAPI()
    mounted.add_api_route("/things", list_with_plain_query)
    if way == "router":
        app.include_router(APIRouter(routes=[Mount("/mounted", mounted)]))
    elif way == "mount twice":
        between = FastAPI()
        between.mount("/mounted", mounted)
        app.mount("/mounted", between)
    else:
        app.mount("/mounted", GZipMiddleware(mounted) if way == "middleware" else mounted)

    with pytest.raises(RuntimeError, match=PLAIN_QUERY):
        check_routes(app)


def test_correct_route_is_accepted(app: FastAPI) -> None:
    app.add_api_route("/things", correct)

    check_routes(app)
