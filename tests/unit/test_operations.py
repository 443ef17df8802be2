"""The tests of every operation know all of them."""

import re
from typing import Any, cast

import pytest
from fastapi import FastAPI
from httpx import Response

from tests.support.callers import Caller
from tests.support.operations import ANYONE, HERE, OPERATIONS, PARAMETERS, Operation, documented, path_of


def test_each_operation_of_the_application_is_in_operations(app: FastAPI) -> None:
    missing = sorted(documented(app).keys() - OPERATIONS.keys())

    assert not missing, f"add to OPERATIONS in {HERE}: {', '.join(missing)}"


def test_each_entry_of_operations_is_in_the_application(app: FastAPI) -> None:
    unknown = sorted(OPERATIONS.keys() - documented(app).keys())

    assert not unknown, f"remove from OPERATIONS in {HERE}: {', '.join(unknown)}"


def test_each_operation_of_a_domain_has_its_costs(app: FastAPI) -> None:
    domains = {name for name, operation in documented(app).items() if operation.get("tags") != ["health"]}
    without = sorted(name for name in domains & OPERATIONS.keys() if not OPERATIONS[name].costs)

    assert not without, f"add costs= to these of OPERATIONS in {HERE}: {', '.join(without)}"


def test_each_path_parameter_is_in_parameters() -> None:
    named = {parameter for name in OPERATIONS for parameter in re.findall(r"{(\w+)}", name)}
    missing, unknown = sorted(named - PARAMETERS.keys()), sorted(PARAMETERS.keys() - named)

    assert not missing, f"add to PARAMETERS in {HERE}: {', '.join(missing)}"
    assert not unknown, f"remove from PARAMETERS in {HERE}: {', '.join(unknown)}"


async def test_path_of_an_operation_with_after_sends_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GET of a sub-resource succeeds only after its PUT."""
    sent: list[tuple[str, str, Any]] = []

    class Owner:
        async def __call__(self, method: str, path: str, **request: Any) -> Response:
            sent.append((method, path, request))
            return Response(200)

    put = "PUT /photo"
    get = "GET /photo"
    monkeypatch.setitem(OPERATIONS, put, Operation(statuses=ANYONE, request={"json": {"url": "x"}}))
    monkeypatch.setitem(OPERATIONS, get, Operation(statuses=ANYONE, after=put))

    assert await path_of(get, cast("Caller", Owner())) == "/photo"
    assert sent == [("PUT", "/photo", {"json": {"url": "x"}})]
