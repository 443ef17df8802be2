"""Request bodies: chunks, disconnects, content types, JSON and its edges, forms, files, and bodies read by hand."""

from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, Json, field_validator, model_validator
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.asgi_comparison import FORM, JSON, Call, Cases, Journal, New, multipart, post

CASES = Cases()
DISCONNECT = {"type": "http.disconnect"}


class Item(BaseModel):
    name: str
    price: float = 1.5
    tags: list[str] = []


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date | None = None
    id: UUID | None = None
    raw: bytes | None = None
    pair: tuple[int, int] | None = None
    unique: set[int] | None = None
    amount: Decimal | None = None
    number: float | None = None


class Mutating(BaseModel):
    kept: int

    @model_validator(mode="before")
    @classmethod
    def _take(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data.pop("extra", None)
            data["added"] = True
        return data


class FormModel(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    numbers: list[int] = []


class FormAliases(BaseModel):
    name: str = Field(validation_alias=AliasChoices("first", "second"))


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


def _part(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]


def _sent(*messages: object, line: str = "POST /model", **options: Any) -> Call:
    return Call(line, _part(content_type=JSON), messages, **options)  # type: ignore[arg-type]


def _chunk(body: bytes, more: bool) -> dict[str, object]:
    return {"type": "http.request", "body": body, "more_body": more}


MODEL = b'{"name": "a"}'
FILE_BODY, FILE_TYPE = multipart(('name="file"; filename="a.txt"', b"content"))
FILES_BODY, FILES_TYPE = multipart(
    ('name="files"; filename="a.txt"', b"1"),
    ('name="files"; filename=""', b""),
    ('name="files"; filename="b.txt"', b"22"),
)
MIXED_BODY, MIXED_TYPE = multipart(('name="a"', b"1"), ('name="b"', b"x"), ('name="file"; filename="f"', b"\x00\xff"))
EMPTY_FILE_BODY, EMPTY_FILE_TYPE = multipart(('name="file"; filename=""', b""))
MANY_BODY, MANY_TYPE = multipart(*[(f'name="f{index}"', b"v") for index in range(8)])


@CASES.many(
    "body",
    model=post("/model", MODEL),
    model_in_chunks=post("/model", [b"{", b'"name"', b': "a"', b"}"]),
    model_with_empty_chunks=post("/model", [b"", MODEL[:5], b"", MODEL[5:], b""]),
    model_absent=post("/model", b""),
    model_absent_without_type=post("/model", b"", None),
    model_empty=post("/model", b"{}"),
    model_null=post("/model", b"null"),
    model_list=post("/model", b"[]"),
    model_string=post("/model", b'"text"'),
    model_whitespace=post("/model", b"  "),
    model_truncated=post("/model", b'{"name": "a"'),
    model_trailing_comma=post("/model", b'{"name": "a",}'),
    model_two_documents=post("/model", b'{"name": "a"}{}'),
    model_invalid_utf8=post("/model", b'{"name": "\xff"}'),
    model_lone_surrogate=post("/model", b'{"name": "\\ud800"}'),
    model_control_character=post("/model", b'{"name": "\x01"}'),
    model_utf16=post("/model", '{"name": "ä"}'.encode("utf-16")),
    model_byte_order_mark=post("/model", b"\xef\xbb\xbf" + MODEL),
    model_nan=post("/model", b'{"name": "a", "price": NaN}'),
    model_infinity=post("/model", b'{"name": "a", "price": -Infinity}'),
    model_huge_float=post("/model", b'{"name": "a", "price": 1e999}'),
    model_huge_integer=post("/model", b'{"name": "a", "price": ' + b"9" * 400 + b"}"),
    model_too_many_digits=post("/model", b'{"name": "a", "price": ' + b"9" * 5000 + b"}"),
    model_duplicate_key=post("/model", b'{"name": "a", "name": "b"}'),
    model_number_as_name=post("/model", b'{"name": 1, "price": "1.5", "tags": "no"}'),
    model_deep=post("/model", b"[" * 100_000),
    model_deep_extra=post("/model", b'{"name": "a", "x": ' + b"[" * 150 + b"]" * 150 + b"}"),
    type_parameters=post("/model", MODEL, "application/json; charset=utf-8"),
    type_latin1_charset=post("/model", '{"name": "é"}'.encode("latin-1"), "application/json; charset=latin-1"),
    type_upper_case=post("/model", MODEL, "APPLICATION/JSON"),
    type_vendor=post("/model", MODEL, "application/vnd.api+json; v=1"),
    type_vendor_upper_case=post("/model", MODEL, "Application/X+JSON"),
    type_only_suffix=post("/model", MODEL, "application/+json"),
    type_jsonx=post("/model", MODEL, "application/jsonx"),
    type_text=post("/model", MODEL, "text/json"),
    type_absent=post("/model", MODEL, None),
    type_empty=post("/model", MODEL, ""),
    type_without_slash=post("/model", MODEL, "json"),
    type_semicolons=post("/model", MODEL, "application/json;;"),
    type_spaces=post("/model", MODEL, "  application/json  "),
    type_quoted=post("/model", MODEL, '"application/json"'),
    type_latin1_bytes=post("/model", MODEL, "application/jsön"),
    type_of_a_form=post("/model", MODEL, FORM),
    type_twice=post("/model", MODEL, JSON, headers=_part(content_type="text/plain")),
    type_twice_reversed=post("/model", MODEL, "text/plain", headers=_part(content_type=JSON)),
    type_twice_lax=post("/lax", MODEL, "", headers=_part(content_type="text/plain")),
    lax_without_type=post("/lax", MODEL, None),
    lax_with_text=post("/lax", MODEL, "text/plain"),
    lax_without_type_invalid=post("/lax", b"{", None),
    length_too_large=_sent(_chunk(b'{"name": ', True), DISCONNECT),
    length_mismatch=Call(
        "POST /integer", _part(content_type=JSON, content_length="5"), [_chunk(b"12", True), DISCONNECT]
    ),
    length_twice=post("/integer", b"12", headers=_part(content_length="2") * 2),
    disconnect_before=_sent(DISCONNECT),
    disconnect_after_empty_chunk=_sent(_chunk(b"", True), DISCONNECT),
    disconnect_after_body=_sent(_chunk(MODEL, False), DISCONNECT),
    disconnect_without_body_parameter=_sent(DISCONNECT, line="GET /nothing"),
    unknown_message=_sent(_chunk(MODEL[:4], True), {"type": "http.unknown"}, _chunk(MODEL[4:], False)),
    message_without_body=_sent({"type": "http.request", "more_body": True}, {"type": "http.request", "body": MODEL}),
    message_without_anything=_sent({"type": "http.request"}),
    receive_fails=_sent(RuntimeError("lost")),
    receive_fails_in_between=_sent(_chunk(b"{", True), OSError("reset")),
    receive_raises_http_exception=_sent(_chunk(b"{", True), HTTPException(418, "teapot", {"x-a": "b"})),
    receive_raises_base_exception=_sent(KeyboardInterrupt()),
    receive_raises_group=_sent(ExceptionGroup("several", [ValueError("a"), OSError("b")])),
    integer=post("/integer", b"12"),
    integer_text=post("/integer", b'"12"'),
    integer_float=post("/integer", b"12.0"),
    integer_null=post("/integer", b"null"),
    integer_absent=post("/integer", b""),
    two=post("/two", b'{"a": 1, "b": "x"}'),
    two_missing=post("/two", b'{"a": "no"}'),
    two_list=post("/two", b"[1]"),
    two_null=post("/two", b"null"),
    two_absent=post("/two", b""),
    two_text=post("/two", b"a=1", "text/plain"),
    embedded=post("/embedded", b'{"item": {"name": "a"}}'),
    embedded_flat=post("/embedded", MODEL),
    embedded_alias=post("/alias", b'{"renamed": 3}'),
    embedded_alias_by_name=post("/alias", b'{"number": 3}'),
    embedded_choices=post("/choices", b'{"two": 2}'),
    embedded_choices_absent=post("/choices", b"{}"),
    optional_absent=post("/optional", b""),
    optional_null=post("/optional", b"null"),
    optional_present=post("/optional", MODEL),
    optional_wrong_type=post("/optional", MODEL, "text/plain"),
    default_is_copied=post("/default", b""),
    factory=post("/factory", b""),
    bytes=post("/bytes", b"\x00\xff", "application/octet-stream"),
    bytes_as_json=post("/bytes", b'"text"'),
    bytes_absent=post("/bytes", b"", "application/octet-stream"),
    list=post("/list", b'[{"name": "a"}, {"name": "b", "price": 2}]'),
    list_with_error=post("/list", b'[{"name": "a"}, {}]'),
    any_false=post("/any", b"false"),
    any_large=post("/any", b'{"a": 12345678901234567890123, "b": 0.1e-7}'),
    any_null=post("/any", b"null"),
    mapping=post("/mapping", b'{"a": "1", "b": 2}'),
    union_cat=post("/union", b'{"kind": "cat", "lives": 9}'),
    union_wrong=post("/union", b'{"kind": "cow"}'),
    json_text=post("/json-text", b'"[1, 2]"'),
    strict_date=post("/strict", b'{"day": "2026-01-02"}'),
    strict_uuid=post("/strict", b'{"id": "00000000-0000-0000-0000-000000000000"}'),
    strict_bytes=post("/strict", b'{"raw": "x"}'),
    strict_tuple=post("/strict", b'{"pair": [1, 2]}'),
    strict_set=post("/strict", b'{"unique": [1, 2]}'),
    strict_decimal=post("/strict", b'{"amount": 1.10}'),
    strict_integer_as_float=post("/strict", b'{"number": 1}'),
    mutated_by_validator=post("/mutating", b'{"kept": 1, "extra": 2}'),
    mutated_by_validator_invalid=post("/mutating", b'{"kept": "x", "extra": 2}'),
    validator_raises_http_exception=post("/raising", b'{"name": "teapot"}'),
    validator_raises_key_error=post("/raising", b'{"name": "key"}'),
    validator_raises_value_error=post("/raising", b'{"name": "value"}'),
    dependency_and_handler=post("/shared", b'{"item": {"name": "a"}, "flag": true}'),
    dependency_and_handler_invalid=post("/shared", b'{"item": {}, "flag": 7}'),
    dependency_same_body=post("/same", MODEL),
    get_with_body=Call("GET /model", _part(content_type=JSON), [_chunk(MODEL, False)]),
    not_read=post("/nothing", [b"x", b"y"]),
    constraint=post("/constrained", b"[1, 2, 3]"),
    constraint_violated=post("/constrained", b"[]"),
)
def _bodies(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        log("invalid", error.errors(), error.body, str(error))
        return await request_validation_exception_handler(request, error)

    @app.api_route("/model", methods=["GET", "POST"])
    async def model(item: Item, request: Request) -> Item:
        log("model", item, await request.body())
        return item

    router = APIRouter(strict_content_type=False)

    @router.post("/lax")
    async def lax(item: Item) -> Item:
        return item

    app.include_router(router)

    @app.post("/integer")
    async def integer(n: Annotated[int, Body()]) -> int:
        log("integer", n)
        return n

    @app.post("/two")
    async def two(a: Annotated[int, Body()], b: Annotated[str, Body()] = "b") -> list[Any]:
        return [a, b]

    @app.post("/embedded")
    async def embedded(item: Annotated[Item, Body(embed=True)]) -> Item:
        return item

    @app.post("/alias")
    async def alias(number: Annotated[int, Body(embed=True, alias="renamed")]) -> int:
        return number

    @app.post("/choices")
    async def choices(
        number: Annotated[int, Body(embed=True, validation_alias=AliasChoices("one", "two"))],
        other: Annotated[int, Body()] = 5,
    ) -> list[int]:
        return [number, other]

    @app.post("/optional")
    async def optional(item: Item | None = None) -> Item | None:
        return item

    @app.post("/default")
    async def default(items: Annotated[list[int], Body()] = [1]) -> list[int]:  # noqa: B006
        items.append(2)
        return items

    @app.post("/factory")
    async def factory(items: Annotated[list[int], Body(default_factory=lambda: [9])]) -> list[int]:
        return items

    @app.post("/bytes")
    async def raw(data: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
        return Response(data)

    @app.post("/list")
    async def many(items: list[Item]) -> list[Item]:
        return items

    @app.post("/any")
    async def anything(data: Annotated[Any, Body()]) -> Any:
        log("any", data)
        return data

    @app.post("/mapping")
    async def mapping(data: dict[str, int]) -> dict[str, int]:
        return data

    @app.post("/union")
    async def union(pet: Annotated[Cat | Dog, Body(discriminator="kind")]) -> Cat | Dog:
        return pet

    @app.post("/json-text")
    async def json_text(data: Annotated[Json[list[int]], Body()]) -> list[int]:
        return data

    @app.post("/strict")
    async def strict(data: Strict) -> str:
        log("strict", data)
        return repr(data)

    @app.post("/mutating")
    async def mutating(data: Mutating, request: Request) -> Any:
        log("mutating", await request.json(), await request.body())
        return await request.json()

    class Raising(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def check(cls, value: str) -> str:
            log("validator", value)
            if value == "teapot":
                raise HTTPException(418, "teapot")
            raise KeyError(value) if value == "key" else ValueError(value)

    @app.post("/raising")
    async def raising(data: Raising) -> None:
        log("not reached")

    async def needs(flag: Annotated[bool, Body()], request: Request) -> bool:
        log("dependency", flag, await request.json())
        return flag

    @app.post("/shared")
    async def shared(item: Item, flag: Annotated[bool, Depends(needs)]) -> Any:
        return {"item": item, "flag": flag}

    async def whole(item: Item) -> Item:
        log("whole", item)
        return item

    @app.post("/same")
    async def same(item: Item, again: Annotated[Item, Depends(whole)]) -> Any:
        log.same("item", item)
        log.same("item", again)
        return [item, again]

    @app.api_route("/nothing", methods=["GET", "POST"])
    async def nothing() -> None:
        log("handler")

    @app.post("/constrained")
    async def constrained(data: Annotated[list[int], Body(min_length=1)]) -> list[int]:
        return data

    return app


@CASES.many(
    "form",
    fields=post("/fields", b"a=1&b=x", FORM),
    fields_default=post("/fields", b"a=1", FORM),
    fields_blank=post("/fields", b"a=&b=", FORM),
    fields_repeated=post("/fields", b"a=1&a=2&b=x&b=y", FORM),
    fields_plus_and_percent=post("/fields", b"a=1&b=x+y%20z%C3%A4%ff", FORM),
    fields_in_chunks=post("/fields", [b"a=", b"1", b"&b", b"=x"], FORM),
    fields_absent=post("/fields", b"", FORM),
    fields_as_json=post("/fields", b'{"a": 1}'),
    fields_without_type=post("/fields", b"a=1", None),
    fields_type_parameters=post("/fields", b"a=1", f"{FORM}; charset=latin-1"),
    fields_disconnect=Call("POST /fields", _part(content_type=FORM), [_chunk(b"a=1", True), DISCONNECT]),
    fields_receive_fails=Call("POST /fields", _part(content_type=FORM), [OSError("reset")]),
    model=post("/form-model", b"name=x&numbers=1&numbers=2", FORM),
    model_extra=post("/form-model", b"name=x&other=1", FORM),
    model_missing=post("/form-model", b"numbers=z", FORM),
    model_optional_absent=post("/form-optional", b"", FORM),
    model_optional_present=post("/form-optional", b"name=x", FORM),
    model_choices=post("/form-choices", b"second=2&third=3", FORM),
    union=post("/form-union", b"kind=cat&lives=9", FORM),
    list=post("/form-list", b"n=1&n=2", FORM),
    list_absent=post("/form-list", b"", FORM),
    file=post("/file", FILE_BODY, FILE_TYPE),
    file_in_chunks=post("/file", [FILE_BODY[:30], FILE_BODY[30:90], b"", FILE_BODY[90:]], FILE_TYPE),
    file_missing=post("/file", b"", FILE_TYPE),
    file_as_json=post("/file", b"{}"),
    file_empty_name=post("/file", EMPTY_FILE_BODY, EMPTY_FILE_TYPE),
    file_optional_empty_name=post("/file-optional", EMPTY_FILE_BODY, EMPTY_FILE_TYPE),
    file_bytes=post("/file-bytes", FILE_BODY, FILE_TYPE),
    files=post("/files", FILES_BODY, FILES_TYPE),
    mixed=post("/mixed", MIXED_BODY, MIXED_TYPE),
    mixed_invalid=post("/mixed", FILE_BODY, FILE_TYPE),
    multipart_truncated=post("/file", FILE_BODY[:-30], FILE_TYPE),
    multipart_garbage=post("/file", b"garbage", FILE_TYPE),
    multipart_without_boundary=post("/file", FILE_BODY, "multipart/form-data"),
    multipart_disconnect=Call("POST /file", _part(content_type=FILE_TYPE), [_chunk(FILE_BODY[:60], True), DISCONNECT]),
    multipart_too_many_fields=post("/limited", MANY_BODY, MANY_TYPE),
    multipart_part_too_large=post("/limited", multipart(('name="a"', b"x" * 40))[0], MANY_TYPE),
    urlencoded_too_many_fields=post("/limited", b"&".join(b"f%d=1" % n for n in range(9)), FORM),
    closed_after_the_response=post("/closing", FILE_BODY, FILE_TYPE),
    closed_when_the_handler_fails=post("/closing?fail=true", FILE_BODY, FILE_TYPE),
    dependency_and_handler=post("/form-shared", b"a=1&b=2", FORM),
    read_again=post("/form-again", b"a=1", FORM),
)
def _forms(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.post("/fields")
    async def fields(a: Annotated[int, Form()], b: Annotated[str, Form()] = "b") -> list[Any]:
        return [a, b]

    @app.post("/form-model")
    async def form_model(data: Annotated[FormModel, Form()]) -> FormModel:
        return data

    @app.post("/form-optional")
    async def form_optional(data: Annotated[FormModel | None, Form()] = None) -> Any:
        return data

    @app.post("/form-choices")
    async def form_choices(data: Annotated[FormAliases, Form()]) -> Any:
        return data

    @app.post("/form-union")
    async def form_union(data: Annotated[Cat | Dog, Form()]) -> Any:
        return data

    @app.post("/form-list")
    async def form_list(n: Annotated[list[int], Form()]) -> list[int]:
        return n

    @app.post("/file")
    async def file(file: UploadFile) -> str:
        log("file", file)
        return (await file.read()).decode()

    @app.post("/file-optional")
    async def file_optional(file: UploadFile | None = None) -> bool:
        return file is None

    @app.post("/file-bytes")
    def file_bytes(file: Annotated[bytes, File()]) -> int:
        return len(file)

    @app.post("/files")
    async def files(files: list[UploadFile]) -> list[str | None]:
        return [each.filename for each in files]

    @app.post("/mixed")
    async def mixed(a: Annotated[int, Form()], b: Annotated[str, Form()], file: Annotated[bytes, File()]) -> list[Any]:
        return [a, b, len(file)]

    @app.post("/limited", form_limits={"max_fields": 4, "max_part_size": 20})
    async def limited(f1: Annotated[str, Form()] = "none") -> str:
        return f1

    kept: list[UploadFile] = []

    async def watch() -> Any:
        yield
        log("exit", kept)

    @app.post("/closing", dependencies=[Depends(watch)])
    async def closing(file: UploadFile, request: Request, fail: bool = False) -> str:
        kept[:] = [file]
        request.state.file = file
        log("open", file)
        if fail:
            raise KeyError("fail")
        return "ok"

    async def part(a: Annotated[int, Form()]) -> int:
        return a

    @app.post("/form-shared")
    async def form_shared(a: Annotated[int, Depends(part)], b: Annotated[int, Form()]) -> list[int]:
        return [a, b]

    @app.post("/form-again")
    async def form_again(a: Annotated[int, Form()], request: Request) -> Any:
        form = await request.form()
        log.same("form", form)
        log.same("form", await request.form())
        return form.multi_items()

    return app


HOWS = ("body", "json", "form", "stream", "body-twice", "stream-twice", "stream-then-body", "body-then-stream")
HOWS_RECEIVE = ("receive", "receive-after-body", "is-disconnected", "json-invalid", "partial-stream-then-body")


async def _read(how: str, request: Request, log: Journal) -> None:
    match how:
        case "body":
            log("body", await request.body())
        case "json" | "json-invalid":
            log("json", await request.json())
        case "form":
            log("form", await request.form())
        case "stream":
            log("stream", [chunk async for chunk in request.stream()])
        case "body-twice":
            log("body", await request.body(), await request.body())
        case "stream-twice":
            log("first", [chunk async for chunk in request.stream()])
            log("second", [chunk async for chunk in request.stream()])
        case "stream-then-body":
            log("stream", [chunk async for chunk in request.stream()])
            log("body", await request.body())
        case "body-then-stream":
            log("body", await request.body())
            log("stream", [chunk async for chunk in request.stream()])
        case "partial-stream-then-body":
            async for chunk in request.stream():
                log("chunk", chunk)
                break
            log("body", await request.body())
        case "receive":
            log("receive", await request.receive(), await request.receive())
        case "receive-after-body":
            log("body", await request.body(), await request.receive())
        case "is-disconnected":
            log("disconnected", await request.is_disconnected(), await request.is_disconnected())
            log("body", await request.body())


@CASES.many(
    "read",
    {
        f"{where}_{how}".replace("-", "_"): post(
            f"/{where}?how={how}", [b"{" if how == "json-invalid" else b'{"name":', b'"a"}'], JSON, after="disconnect"
        )
        for where in ("handler", "dependency", "after-model", "exception", "exit")
        for how in (*HOWS, *HOWS_RECEIVE)
    },
    form_in_the_handler=post("/handler?how=form", [b"a=1&", b"b=2"], FORM),
    form_in_a_dependency=post("/dependency?how=form", [b"a=1&", b"b=2"], FORM),
    json_of_nothing=post("/handler?how=json", b""),
    after_the_end=post("/handler?how=receive", b"x", after="error"),
    disconnect_in_the_handler=Call("POST /handler?how=body", (), [_chunk(b"x", True), DISCONNECT]),
    disconnect_in_a_dependency=Call("POST /dependency?how=json", (), [_chunk(b"x", True), DISCONNECT]),
)
def _read_by_hand(new: New, log: Journal) -> FastAPI:
    """Each place where a user's code may read the body, and each way to read it."""
    app = new()

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        log("gone", error)
        return Response(status_code=499)

    @app.post("/handler")
    async def handler(request: Request, how: str) -> str:
        log.same("request", request)
        await _read(how, request, log)
        return "ok"

    async def reader(request: Request, how: str) -> None:
        log.same("request", request)
        await _read(how, request, log)

    @app.post("/dependency", dependencies=[Depends(reader)])
    async def dependency(request: Request) -> Any:
        log.same("request", request)
        return {"read": (await request.body()).decode()}

    @app.post("/after-model")
    async def after_model(item: Item, request: Request, how: str) -> str:
        await _read(how, request, log)
        return item.name

    class OwnError(Exception):
        pass

    @app.exception_handler(OwnError)
    async def own(request: Request, error: OwnError) -> Response:
        log.same("request", request)
        await _read(request.query_params["how"], request, log)
        return Response("handled", 400)

    @app.post("/exception")
    async def exception(request: Request) -> None:
        log.same("request", request)
        raise OwnError

    async def with_exit(request: Request, how: str) -> Any:
        yield
        log("exit")
        await _read(how, request, log)

    @app.post("/exit", dependencies=[Depends(with_exit, scope="function")])
    async def leaving() -> str:
        return "ok"

    return app


@CASES.many(
    "invalid",
    handler_reads_body=post("/items?how=body", b'{"name": 1}'),
    handler_reads_json=post("/items?how=json", b'{"name": 1}'),
    handler_reads_stream=post("/items?how=stream", b"{"),
    handler_reads_form=post("/form?how=form", b"a=x", FORM),
    handler_reads_unread_body=post("/query?how=body", b"unread"),
    http_exception_handler_reads_body=post("/hook?how=body", [b"un", b"read"]),
    not_found_handler_reads_body=post("/elsewhere?how=body", b"unread"),
    server_error_handler_has_no_receive=post("/crash?how=body", b"unread"),
)
def _handlers_read(new: New, log: Journal) -> FastAPI:
    """Exception handlers read the body of the request that failed."""
    app = new()

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(HTTPException)
    @app.exception_handler(404)
    async def handle(request: Request, error: Exception) -> Response:
        log.same("request", request)
        log("handle", error)
        await _read(request.query_params["how"], request, log)
        return Response("handled", 400)

    @app.exception_handler(Exception)
    async def crashed(request: Request, error: Exception) -> Response:
        log("crashed", error)
        await _read(request.query_params["how"], request, log)
        return Response("crashed", 500)

    @app.post("/items")
    async def items(item: Item) -> Item:
        return item

    @app.post("/form")
    async def form(a: Annotated[int, Form()]) -> int:
        return a

    @app.post("/query")
    async def query(n: int) -> int:
        return n

    @app.post("/hook")
    async def hook(request: Request) -> Item:
        log.same("request", request)
        await request.body()
        raise HTTPException(400)

    @app.post("/crash")
    async def crash() -> None:
        raise KeyError("crash")

    return app


@CASES.many(
    "limit",
    slow="it has a body size limit of its own",
    app_exceeded=post("/app", b"123456789"),
    app_exceeded_in_chunks=post("/app", [b"12345", b"6789"]),
    app_kept=post("/app", b"12345678"),
    app_by_length=Call("POST /app", _part(content_type=JSON, content_length="99"), [_chunk(b"1", False)]),
    app_by_length_unread=Call("POST /unread", _part(content_length="99"), [_chunk(b"1", False)]),
    route_larger=post("/route", b"1234567890"),
    route_exceeded=post("/route", b"1" * 21),
    route_exceeded_while_streaming=post("/stream", [b"1" * 15, b"1" * 15]),
    router_exceeded=post("/router/app", b"12345"),
    router_kept=post("/router/app", b"1234"),
    include_exceeded=post("/include/app", b"1234567"),
    form_exceeded=post("/form", b"a=" + b"1" * 40, FORM),
)
def _limits(new: New, log: Journal) -> FastAPI:
    app = new(max_body_size=8)
    limited, included = APIRouter(max_body_size=4), APIRouter()

    @app.post("/app")
    @limited.post("/app")
    @included.post("/app")
    async def echo(n: Annotated[int, Body()]) -> int:
        log("handler", n)
        return n

    @app.post("/unread")
    async def unread() -> str:
        log("handler")
        return "ok"

    @app.post("/route", max_body_size=20)
    async def larger(n: Annotated[int, Body()]) -> int:
        return n

    @app.post("/stream", max_body_size=20)
    async def stream(request: Request) -> int:
        return len([chunk async for chunk in request.stream()])

    @app.post("/form", max_body_size=20)
    async def form(a: Annotated[str, Form()]) -> str:
        return a

    app.include_router(limited, prefix="/router")
    app.include_router(included, prefix="/include", max_body_size=6)
    return app


@CASES.many(
    "middleware",
    body_replaced=post("/model", b"ignored"),
    body_replaced_in_a_copied_scope=post("/model?copy=1", b"ignored", hidden=True),
    body_consumed=post("/model?consume=1", MODEL, after="disconnect"),
)
def _body_middleware(new: New, log: Journal) -> FastAPI:
    """A pure ASGI middleware inside the application replaces or consumes what the client sent."""
    app = new()

    class Replace:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            query = scope["query_string"]

            async def replaced() -> Any:
                log("replaced")
                return _chunk(b'{"name": "replaced"}', False)

            if query == b"consume=1":
                log("consumed", await receive())
                await self.app(scope, receive, send)
            else:
                await self.app(dict(scope) if query else scope, replaced, send)

    app.add_middleware(Replace)

    @app.post("/model")
    async def model(item: Item) -> Item:
        return item

    return app
