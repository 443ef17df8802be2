"""Every field of a request is stored, and answered as it is stored.

Every field of every JSON request body in the OpenAPI document is sent. The answer and a following GET must both have
the value that was sent, so a field that is accepted but not stored is found. A new domain is covered without a change
here, if its POST answers with `Location` and its items have an `id`. The path of a POST may contain the id of an item
that another POST creates, as in `/books/{book_id}/comments`.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from itertools import count
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import pytest
from fastapi import FastAPI, Response
from httpx import AsyncClient
from pydantic import BaseModel, Field
from sqlalchemy import URL, Numeric, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typing_extensions import TypedDict

from app.database import WriteSession
from app.web.deps import ReadDb, WriteDb
from app.web.path_params import Id
from tests.support.callers import Caller
from tests.support.people import person, sign_in
from tests.support.postgres import connect

Item = dict[str, Any]


async def password_is_stored(client: AsyncClient, user: Item, password: Any) -> bool:
    return (await sign_in(client, user["email"], password)).status_code == 200


HERE = "tests/integration/domains/test_answers_are_stored.py"
# "Schema.field": two valid values, if `examples()` cannot derive them from the JSON schema. An answer must have them
# exactly as they were sent, so an object needs all its fields. A Decimal is compared as a number: give it fewer digits
# than the scale of its column, such as "1.5". Then an answer that was not read from the database is found.
VALUES: dict[str, tuple[Any, Any]] = {}
# Operations with a JSON body that neither create nor change an item with these fields, such as "POST /books/publish".
OTHERS: set[str] = set()
# "Schema.field": whether the item has the value, if no answer shows the field.
CHECKS: dict[str, Callable[[AsyncClient, Item, Any], Awaitable[bool]]] = {
    "SignUp.password": password_is_stored,
    "UserPatch.password": password_is_stored,
}

ADAPT = f"adapt VALUES in {HERE}"

numbers = count(1)


def is_decimal(schema: dict[str, Any]) -> bool:
    """Return True for a Decimal: a request may have it as a number or as text, an answer has text."""
    return {"number", "string"} <= {each.get("type") for each in schema.get("anyOf", ())}


def is_same(schema: dict[str, Any], sent: Any, answered: Any) -> bool:
    """Return True if an answer has the value that was sent. PostgreSQL adds zeros to a Decimal, up to its scale."""
    if is_decimal(schema) and sent is not None and answered is not None:
        return Decimal(str(sent)) == Decimal(str(answered))
    return bool(sent == answered)


def examples(name: str, schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[Any]:
    """Yield two values that a field accepts and stores unchanged. Strings are unique."""
    of_decimal = is_decimal(schema)
    if "anyOf" in schema:
        schema |= next(each for each in schema["anyOf"] if each.get("type") != "null")
    if "$ref" in schema:
        schema |= schemas[schema["$ref"].rpartition("/")[2]]
    least = schema.get("minimum", 1)
    if name in VALUES:
        yield from VALUES[name]
    elif of_decimal:
        yield from (str(Decimal(str(least)) + Decimal("0.5")), str(Decimal(str(least)) + Decimal("1.5")))
    elif len(schema.get("enum", ())) > 1:
        yield from schema["enum"][:2]
    elif schema.get("type") == "boolean":
        yield from (True, False)
    elif schema.get("type") == "integer":
        yield from (least, least + 1)
    elif schema.get("type") == "number":
        yield from (least + 0.5, least + 0.25)
    elif schema.get("format") == "email":
        yield from (f"value{next(numbers)}@example.com" for _ in range(2))
    elif schema.get("format") == "uuid":
        yield from (str(UUID(int=next(numbers))) for _ in range(2))
    elif schema.get("format") == "date":
        yield from ("2026-01-31", "2026-02-01")
    elif schema.get("format") == "date-time":
        yield from ("2026-01-31T12:00:00Z", "2026-02-01T12:00:00Z")
    elif schema.get("type") == "string" and schema.get("format", "password") == "password":
        yield from (f"value {next(numbers)}".ljust(schema.get("minLength", 0), "x") for _ in range(2))
    else:
        raise AssertionError(f"add two valid values for {name!r} to VALUES in {HERE}, exactly as an answer has them")


class Write(NamedTuple):
    """An operation with a JSON request body."""

    name: str
    path: str
    schema: str
    fields: dict[str, dict[str, Any]]
    answer: Any


def writes(document: dict[str, Any], method: str) -> list[Write]:
    """Return the write operations of a method. Those with the fewest path parameters come first."""
    found = []
    for path, operations in document["paths"].items():
        operation = operations.get(method.lower(), {})
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        name = f"{method} {path}"
        if body and name not in OTHERS:
            schema = body["schema"].get("$ref", "").rpartition("/")[2]
            fields = document["components"]["schemas"].get(schema, {}).get("properties")
            assert fields, f"add {name!r} to OTHERS in {HERE}: its body is no model"
            found.append(Write(name, path, schema, fields, answer_schema(operation)))
    return sorted(found, key=lambda write: write.path.count("{"))


def answer_schema(operation: dict[str, Any]) -> Any:
    success = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
    return success.get("content", {}).get("application/json", {}).get("schema")


def matching(path: str, location: str) -> re.Match[str] | None:
    return re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path), location)


class Checker:
    """Sends every field as an administrator and collects those that are not stored."""

    def __init__(self, app: FastAPI, admin: Caller) -> None:
        self.document = app.openapi()
        self.admin = admin
        self.ids: dict[str, str] = {}
        self.collections: dict[str, str] = {}
        self.not_stored: list[str] = []

    async def check_all(self) -> list[str]:
        """Return a line for each field that is not stored, or not answered as it is stored."""
        creations, changes = writes(self.document, "POST"), writes(self.document, "PATCH")
        assert creations
        assert changes
        for creation in creations:
            await self.create(creation)
        for replacement in writes(self.document, "PUT"):
            location, item = await self.create(self.creation_of(replacement, creations))
            body = {field: self.another_value(replacement, field, item) for field in replacement.fields}
            answer = await self.admin("PUT", location, json=body)
            assert answer.is_success, f"{replacement.name}: {answer.text}: {ADAPT}"
            await self.compare(replacement, location, body, answer.json())
        for change in changes:
            for field in change.fields:
                location, item = await self.create(self.creation_of(change, creations))
                value = self.another_value(change, field, item)
                answer = await self.admin("PATCH", location, json={field: value})
                assert answer.is_success, f"{change.name}: {answer.text}: {ADAPT}"
                await self.compare(change, location, {field: value}, answer.json())
        return self.not_stored

    def examples(self, write: Write, field: str) -> Iterator[Any]:
        return examples(f"{write.schema}.{field}", dict(write.fields[field]), self.document["components"]["schemas"])

    def another_value(self, write: Write, field: str, item: Item) -> Any:
        schema = write.fields[field]
        return next(each for each in self.examples(write, field) if not is_same(schema, each, item.get(field)))

    async def create(self, creation: Write) -> tuple[str, Item]:
        """Create an item with a value for every field. Return its path and the answer."""
        body = {field: next(self.examples(creation, field)) for field in creation.fields}
        missing = sorted(set(re.findall(r"{(\w+)}", creation.path)) - self.ids.keys())
        assert not missing, f"{creation.name}: set {missing} in Checker.ids of {HERE}: no Location of a POST has them"
        collection = creation.path.format(**self.ids)
        answer = await self.admin("POST", collection, json=body)
        assert answer.is_success, f"{creation.name}: {answer.text}: {ADAPT}"
        assert "location" in answer.headers, (
            f"add {creation.name!r} to OTHERS in {HERE}, or a Location to its answer: that is the path of the new item"
        )
        location: str = answer.headers["location"]
        self.collections[location] = collection
        for path in self.document["paths"]:
            if match := matching(path, location):
                self.ids |= match.groupdict()
        await self.compare(creation, location, body, answer.json())
        return location, answer.json()

    def creation_of(self, change: Write, creations: list[Write]) -> Write:
        """Return the POST to `/comments` or `/books/{book_id}/comments` for a PATCH of `/comments/{comment_id}`."""
        collection = change.path.rpartition("/")[0]
        found = [creation for creation in creations if creation.path.endswith(collection)]
        assert found, f"add {change.name!r} to OTHERS in {HERE}: no POST ends in {collection}, to create an item first"
        return found[0]

    async def compare(self, write: Write, location: str, sent: Item, answered: Item) -> None:
        stored = await self.stored(write, location, answered["id"])
        for field in sent.keys() | answered.keys() | stored.keys():
            values = f"sent {sent.get(field)!r}, answered {answered.get(field)!r}, stored {stored.get(field)!r}"
            if check := CHECKS.get(f"{write.schema}.{field}"):
                is_stored = field not in sent or await check(self.admin.client, stored, sent[field])
            else:
                is_answered = field not in sent or is_same(write.fields[field], sent[field], answered.get(field))
                is_stored = field in stored and is_answered and answered.get(field) == stored[field]
            if not is_stored:
                self.not_stored.append(
                    f"{write.name}: {field}: {values}; if no answer has the field, add it to CHECKS in {HERE}"
                )

    async def stored(self, write: Write, location: str, id_: int) -> Item:
        """Return the item from GET: by its path if that has the same schema, otherwise from the list."""
        for path, operations in self.document["paths"].items():
            if matching(path, location) and "get" in operations and answer_schema(operations["get"]) == write.answer:
                return dict((await self.admin("GET", location)).json())
        page = await self.admin("GET", self.collections[location], params={"limit": 100})
        assert page.is_success, (
            f"add {write.name!r} to OTHERS in {HERE}: GET {location} or {self.collections[location]} does not show it"
        )
        [item] = [item for item in page.json()["items"] if item["id"] == id_]
        return dict(item)


async def test_every_field_of_every_write_is_stored(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    admin = await person(client, "Admin", database_url, is_admin=True)

    assert await Checker(app, admin).check_all() == []


class OwnBase(DeclarativeBase):
    """Tables that only this module has."""


class Price(OwnBase):
    """A row with a decimal."""

    __tablename__ = "test_prices"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))


class PriceWrite(BaseModel):
    """A request with a decimal."""

    amount: Annotated[Decimal, Field(max_digits=12, decimal_places=2, ge=0)]


class PriceRead(TypedDict):
    """An answer with a decimal."""

    id: int
    amount: Decimal


@pytest.mark.parametrize("is_refreshed", [False, True], ids=["from memory", "refreshed"])
async def test_decimal_answered_from_memory_is_found(
    app: FastAPI, client: AsyncClient, database_url: URL, is_refreshed: bool
) -> None:
    """PostgreSQL stores 0.5 as 0.50. The entity in memory keeps 0.5 until it is refreshed."""

    async def answer(db: WriteSession, price: Price) -> PriceRead:
        await db.flush()
        if is_refreshed:
            await db.refresh(price)
        return {"id": price.id, "amount": price.amount}

    @app.post("/prices", status_code=201)
    async def create_price(data: PriceWrite, db: WriteDb, response: Response) -> PriceRead:
        price = Price(amount=data.amount)
        db.add(price)
        await db.flush()
        response.headers["Location"] = f"/prices/{price.id}"
        return await answer(db, price)

    @app.patch("/prices/{price_id:id}")
    async def update_price(price_id: Id, data: PriceWrite, db: WriteDb) -> PriceRead:
        price = await db.get_one(Price, price_id)
        price.amount = data.amount
        return await answer(db, price)

    @app.get("/prices/{price_id:id}")
    async def get_price(price_id: Id, db: ReadDb) -> PriceRead:
        row = await db.first(select(Price.id, Price.amount).where(Price.id == price_id))
        assert row is not None
        return {"id": row["id"], "amount": row["amount"]}

    with connect(database_url) as connection:
        connection.execute(
            "CREATE TABLE test_prices (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount numeric(12, 2) NOT NULL)"
        )
        connection.execute("GRANT ALL ON test_prices TO PUBLIC")
    admin = await person(client, "Admin", database_url, is_admin=True)
    found = await Checker(app, admin).check_all()

    expected = set() if is_refreshed else {("POST /prices", "amount"), ("PATCH /prices/{price_id}", "amount")}
    assert {tuple(line.split(": ")[:2]) for line in found} == expected
