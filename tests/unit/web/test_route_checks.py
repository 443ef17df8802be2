"""The application does not start with a route that fails a check."""

from typing import Annotated, Any, Literal

import pytest
from fastapi import Depends, FastAPI, Query

from app.database import WriteSession
from app.pagination.page import ListParams
from app.web.deps import WriteDb, get_db
from app.web.pagination import ListQuery
from app.web.route_checks import check_routes


class ThingListParams(ListParams):
    sort: Literal["name", "-name"] = "name"


async def plain_query_params(params: Annotated[ThingListParams, Query()]) -> ThingListParams:
    return params


async def service(db: WriteSession = Depends(get_db)) -> WriteSession:  # noqa: B008 - the mistake under test
    return db


async def list_with_plain_query(params: Annotated[ThingListParams, Query()]) -> None: ...
async def list_with_nested_plain_query(params: Annotated[ThingListParams, Depends(plain_query_params)]) -> None: ...
async def write_with_default_scope(db: Annotated[WriteSession, Depends(get_db)]) -> None: ...
async def write_with_request_scope(db: Annotated[WriteSession, Depends(get_db, scope="request")]) -> None: ...
async def write_with_nested_default_scope(db: Annotated[WriteSession, Depends(service)]) -> None: ...
async def correct(params: ListQuery[ThingListParams], db: WriteDb) -> None: ...


PLAIN_QUERY = r"^/things takes ThingListParams as a plain Query\(\)"
LATE_COMMIT = r'^/things depends on get_db without scope="function"'


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (list_with_plain_query, PLAIN_QUERY),
        (list_with_nested_plain_query, PLAIN_QUERY),
        (write_with_default_scope, LATE_COMMIT),
        (write_with_request_scope, LATE_COMMIT),
        (write_with_nested_default_scope, LATE_COMMIT),
    ],
)
async def test_application_with_incorrect_route_does_not_start(app: FastAPI, endpoint: Any, message: str) -> None:
    app.add_api_route("/things", endpoint)

    with pytest.raises(RuntimeError, match=message):
        async with app.router.lifespan_context(app):
            pass


def test_incorrect_route_of_mounted_application_is_refused() -> None:
    mounted, app = FastAPI(), FastAPI()
    mounted.add_api_route("/things", list_with_plain_query)
    app.mount("/mounted", mounted)

    with pytest.raises(RuntimeError, match=PLAIN_QUERY):
        check_routes(app)


def test_correct_route_is_accepted(app: FastAPI) -> None:
    app.add_api_route("/things", correct)

    check_routes(app)
