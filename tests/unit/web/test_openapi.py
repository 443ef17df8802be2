"""The OpenAPI document matches the API."""

import re
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.main import create_app
from app.settings import Settings


@pytest.fixture
async def document(client: AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/openapi.json")).json())


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_error_response_of_each_operation_is_a_problem(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert set(response["content"]) == {"application/problem+json"}, f"{name} {status}"
                assert response["description"], f"{name} {status}"


async def test_operation_documents_errors_of_middleware(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert {"500"} <= set(operation["responses"]), name
        if "requestBody" in operation:
            assert {"400", "413"} <= set(operation["responses"]), name


async def test_domain_operation_documents_errors_of_every_route(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if operation.get("tags") != ["health"]:
            assert {"422", "503"} <= set(operation["responses"]), name


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        return [node["$ref"]] if "$ref" in node else [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


async def test_reference_in_document_resolves(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert "#/components/schemas/Problem" in found
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


async def test_list_parameter_sent_twice_is_refused(document: dict[str, Any], client: AsyncClient) -> None:
    queries = {
        name: [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
        for name, operation in operations(document)
    }
    parameters = [(name, parameter) for name, query in queries.items() if "cursor" in query for parameter in query]
    assert parameters
    for name, parameter in parameters:
        method, _, template = name.partition(" ")
        path = re.sub(r"{\w+}", "1", template)
        response = await client.request(method, path, params=[(parameter, "1"), (parameter, "2")])
        assert response.status_code == 422, name
        assert ["query", parameter] in [error["loc"] for error in response.json()["errors"]], name


async def test_list_documents_its_largest_offset(document: dict[str, Any]) -> None:
    offsets = {
        name: parameter["schema"]["anyOf"][0]["maximum"]
        for name, operation in operations(document)
        for parameter in operation.get("parameters", ())
        if parameter["name"] == "offset"
    }
    assert offsets.keys() >= {"GET /users"}
    assert set(offsets.values()) == {Settings().list_max_offset}, offsets


async def test_response_schema_has_no_password(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    in_responses = {ref for _, operation in operations(document) for ref in references(operation["responses"])}
    while (
        nested := {ref for name in in_responses for ref in references(schemas[name.rpartition("/")[2]])} - in_responses
    ):
        in_responses |= nested

    assert "#/components/schemas/OwnUser" in in_responses
    for name in in_responses:
        fields = schemas[name.rpartition("/")[2]].get("properties", {})
        assert not [field for field in fields if "password" in field], name


async def test_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


async def test_security_scheme_names_the_token_url(document: dict[str, Any]) -> None:
    [scheme] = document["components"]["securitySchemes"].values()

    assert scheme["flows"]["password"]["tokenUrl"] == "/auth/token"


async def test_docs_page_is_served(client: AsyncClient) -> None:
    response = await client.get("/docs")

    assert response.status_code == 200
    assert "Headroom" in response.text


async def test_docs_are_switched_off_by_a_setting() -> None:
    app = create_app(Settings(database_url="sqlite+aiosqlite://", secret_key="k" * 32, api_docs="off"))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        answers = [await client.get(path) for path in ("/docs", "/docs/oauth2-redirect", "/openapi.json")]

    assert [(answer.status_code, answer.json()["type"]) for answer in answers] == [(404, "/problems/not-found")] * 3


async def test_operation_that_hashes_passwords_documents_server_busy(document: dict[str, Any]) -> None:
    descriptions = {
        name: operation["responses"]["503"]["description"]
        for name, operation in operations(document)
        if operation.get("tags") in (["auth"], ["users"], ["posts"])
    }

    assert {name for name, description in descriptions.items() if "/problems/server-busy" in description} == {
        "POST /auth/token", "POST /users", "PATCH /users/{user_id}"
    }  # fmt: skip
    assert all("/problems/pool-exhausted" in description for description in descriptions.values())
