"""The OpenAPI document says what the API does."""

from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from openapi_spec_validator import OpenAPIV31SpecValidator


@pytest.fixture
async def document(client: AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/openapi.json")).json())


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_every_error_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert set(response["content"]) == {"application/problem+json"}, f"{name} {status}"
                assert response["description"], f"{name} {status}"


async def test_every_operation_documents_what_can_happen_anywhere(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert {"500"} <= set(operation["responses"]), name
        if "requestBody" in operation:
            assert {"400", "413"} <= set(operation["responses"]), name


async def test_every_operation_of_a_domain_documents_what_the_platform_answers(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if operation["tags"] != ["health"]:
            assert {"422", "503"} <= set(operation["responses"]), name


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        return [node["$ref"]] if "$ref" in node else [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert "#/components/schemas/Problem" in found
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


async def test_every_parameter_is_taken_once_as_its_schema_says(document: dict[str, Any], client: AsyncClient) -> None:
    taken = [
        (name, parameter["name"])
        for name, operation in operations(document)
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
    ]
    assert ("GET /posts", "sort") in taken
    for name, parameter in taken:
        method, _, path = name.partition(" ")
        answer = await client.request(method, path.format(user_id=1), params=[(parameter, "1"), (parameter, "2")])
        assert answer.status_code == 422, name
        assert ["query", parameter] in [error["loc"] for error in answer.json()["errors"]], name


async def test_no_answer_has_a_password_in_its_schema(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    answered = {ref for _, operation in operations(document) for ref in references(operation["responses"])}
    while more := {ref for name in answered for ref in references(schemas[name.rpartition("/")[2]])} - answered:
        answered |= more

    assert "#/components/schemas/OwnUser" in answered
    for name in answered:
        fields = schemas[name.rpartition("/")[2]].get("properties", {})
        assert not [field for field in fields if "password" in field], name


async def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


async def test_the_authorize_button_knows_where_to_sign_in(document: dict[str, Any]) -> None:
    [scheme] = document["components"]["securitySchemes"].values()

    assert scheme["flows"]["password"]["tokenUrl"] == "/auth/token"


async def test_the_documentation_is_a_page(app: FastAPI, client: AsyncClient) -> None:
    answer = await client.get("/docs")

    assert answer.status_code == 200
    assert "Headroom" in answer.text


async def test_the_operations_that_hash_a_password_say_that_the_server_can_be_busy(document: dict[str, Any]) -> None:
    unavailable = {
        name: operation["responses"]["503"]["description"]
        for name, operation in operations(document)
        if operation["tags"] != ["health"]
    }

    assert {name for name, description in unavailable.items() if "/problems/server-busy" in description} == {
        "POST /auth/token", "POST /users", "PATCH /users/{user_id}"
    }  # fmt: skip
    assert all("/problems/pool-exhausted" in description for description in unavailable.values())
