"""Path, query, header and cookie parameters: aliases, sequences, models, defaults, encodings and orders of errors."""

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Cookie, Depends, FastAPI, Header, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from tests.support.asgi_comparison import Call, Cases, Journal, New, get, unannotated

CASES = Cases()


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Page(BaseModel):
    limit: int = 10
    tags: list[str] = []
    order: Annotated[str | None, Field(pattern="^[a-z]+$")] = None


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: int = 10
    name: str = Field("n", alias="the-name")


class Allowing(BaseModel):
    model_config = ConfigDict(extra="allow")
    limit: int = 10


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    first_name: str
    last_names: list[str] = Field(default_factory=list)


class OnlyByName(BaseModel):
    model_config = ConfigDict(validate_by_alias=False, validate_by_name=True)
    number: int = Field(alias="n")


class Choices(BaseModel):
    number: int = Field(validation_alias=AliasChoices("a", "b"))


class Checked(BaseModel):
    low: int
    high: int

    @field_validator("high")
    @classmethod
    def above(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("low", 0):
            raise ValueError(f"{value} is below {info.data['low']}")
        return value

    @model_validator(mode="after")
    def together(self) -> "Checked":
        if self.low == self.high:
            raise HTTPException(409, "equal")
        return self


class Headed(BaseModel):
    x_request_id: str
    save_data: bool = False
    x_tag: list[str] = []
    if_match: str | None = Field(None, alias="If-Match")


class HeadedForbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    host: str
    x_known: int = 0


class HeadedAllowing(BaseModel):
    model_config = ConfigDict(extra="allow")
    x_known: int = 0


class Crumbs(BaseModel):
    session: str
    visits: int = 0


class CrumbsForbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    session: str


def _headers(*pairs: tuple[str, str], line: str) -> Call:
    return Call(line, [(name.encode(), value.encode("latin-1")) for name, value in pairs])


def _raw(line: str, *pairs: tuple[bytes, bytes], query: bytes | None = None) -> Call:
    return Call(line, pairs, scope={} if query is None else {"query_string": query})


@CASES.many(
    "path",
    integer=get("/int/7"),
    integer_invalid=get("/int/x"),
    integer_unicode_digits=get("/int/%D9%A7"),
    integer_bound=get("/int/0"),
    convertor_integer=get("/conv/7"),
    convertor_integer_invalid=get("/conv/x"),
    convertor_and_annotation_differ=get("/conv-str/007"),
    float=get("/float/1.50"),
    rest=get("/rest/a/b//c"),
    rest_empty=get("/rest/"),
    uuid=get("/uuid/12345678-1234-5678-1234-567812345678"),
    text_percent=get("/text/a%20b%2Fc"),
    text_non_utf8=Call("GET /text/x", scope={"path": "/text/\udcff", "raw_path": b"/text/%ff"}),
    text_unicode=get("/text/%C3%A4"),
    text_with_empty_segment=get("/text/"),
    enum=get("/enum/red"),
    enum_invalid=get("/enum/green"),
    literal=get("/literal/b"),
    date=get("/date/2026-02-30"),
    bool=get("/bool/on"),
    decimal=get("/decimal/1.10"),
    alias=get("/alias/1"),
    validation_alias=get("/validation-alias/1"),
    validation_alias_invalid=get("/validation-alias/x"),
    choices=get("/choices/1"),
    choices_invalid=get("/choices/x"),
    two=get("/two/1/x"),
    two_invalid=get("/two/x/toolong"),
    default_factory_is_ignored=get("/factory/5"),
    unused=get("/unused/5"),
)
def _path(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.get("/int/{n}")
    async def integer(n: Annotated[int, Path(gt=0)]) -> int:
        return n

    @app.get("/conv/{n:int}")
    async def conv(n: int, request: Request) -> Any:
        return [n, request.path_params]

    @app.get("/conv-str/{n:int}")
    async def conv_str(n: str) -> str:
        return n

    @app.get("/float/{x:float}")
    async def floating(x: float) -> float:
        return x

    @app.get("/rest/{rest:path}")
    async def rest(rest: str) -> str:
        return rest

    @app.get("/uuid/{u:uuid}")
    async def uuid(u: UUID) -> UUID:
        return u

    @app.get("/text/{text}")
    async def text(text: str, request: Request) -> Any:
        log("text", text, request.url.path)
        return ascii(text)

    @app.get("/enum/{colour}")
    async def enum(colour: Colour) -> Colour:
        return colour

    @app.get("/literal/{letter}")
    async def literal(letter: Literal["a", "b"]) -> str:
        return letter

    @app.get("/date/{day}")
    async def day(day: date) -> date:
        return day

    @app.get("/bool/{flag}")
    async def boolean(flag: bool) -> bool:
        return flag

    @app.get("/decimal/{amount}")
    async def decimal(amount: Decimal) -> Decimal:
        return amount

    @app.get("/alias/{item_id}")
    async def alias(n: Annotated[int, Path(alias="item_id")]) -> int:
        return n

    @app.get("/validation-alias/{item_id}")
    async def validation_alias(n: Annotated[int, Path(validation_alias="item_id")]) -> int:
        return n

    @app.get("/choices/{item_id}")
    async def choices(item_id: Annotated[int, Path(validation_alias=AliasChoices("nope", "item_id"))]) -> int:
        return item_id

    @app.get("/two/{a}/{b}")
    async def two(b: Annotated[str, Path(max_length=3)], a: int) -> list[Any]:
        return [a, b]

    @app.get("/factory/{n}")
    async def factory(n: Annotated[int, Field(default_factory=lambda: 3)]) -> int:
        return n

    @app.get("/unused/{n}")
    async def unused(request: Request) -> Any:
        return request.path_params

    return app


@CASES.many(
    "query",
    required=get("/required?n=1"),
    required_missing=get("/required"),
    required_blank=get("/required?n="),
    required_repeated=get("/required?n=1&n=2"),
    required_without_value=get("/required?n"),
    default=get("/default"),
    default_given=get("/default?n=4"),
    optional=get("/optional"),
    optional_blank=get("/optional?text="),
    annotated_default=get("/annotated-default"),
    text_percent=get("/text?text=a%20b%2Bc+d"),
    text_broken_percent=get("/text?text=%zz%"),
    text_non_utf8=_raw("GET /text", query=b"text=%ff%fe"),
    text_raw_latin1=_raw("GET /text", query=b"text=\xe4"),
    text_semicolon=get("/text?text=a;other=b"),
    text_ampersands=get("/text?&&text=a&"),
    text_equals=get("/text?text=a=b"),
    text_encoded_name=get("/text?te%78t=a"),
    text_upper_case_name=get("/text?TEXT=a"),
    bool=get("/bool?flag=yes"),
    bool_invalid=get("/bool?flag=2"),
    list=get("/list?n=1&n=2"),
    list_one_invalid=get("/list?n=1&n=x&n=y"),
    list_absent=get("/list"),
    list_default=get("/list-default"),
    list_default_is_copied=get("/list-default?unused=1"),
    list_blank=get("/list?n="),
    list_optional_absent=get("/list-optional"),
    list_bare=get("/list-bare?x=1&x=a"),
    set=get("/set?n=2&n=1&n=2"),
    frozenset=get("/frozenset?n=2&n=2"),
    tuple=get("/tuple?n=1&n=x"),
    tuple_wrong_length=get("/tuple?n=1"),
    union=get("/union?v=1"),
    union_text=get("/union?v=x"),
    union_list=get("/union-list?v=1&v=2"),
    alias=get("/alias?item-query=3"),
    alias_by_name=get("/alias?n=3"),
    validation_alias=get("/validation-alias?q=3"),
    validation_alias_missing=get("/validation-alias"),
    choices_first=get("/choices?a=1&b=2"),
    choices_second=get("/choices?b=2"),
    choices_missing=get("/choices?c=2"),
    alias_path=get("/alias-path?a=1"),
    default_factory=get("/factory"),
    default_factory_given=get("/factory?n=1"),
    default_invalid=get("/default-invalid"),
    validated_default=get("/validated-default"),
    json=get("/json?data=[1,2]"),
    json_invalid=get("/json?data=[1"),
    enum=get("/enum?colour=blue"),
    literal_list=get("/literal-list?l=a&l=b&l=c"),
    date_and_time=get("/datetime?at=2026-01-02T03:04:05Z"),
    number_constraint=get("/constraint?n=11&text=ab"),
    decimal=get("/decimal?d=1.10"),
    before_validator=get("/before?n=1,2"),
    after_validator=get("/after?n=-1"),
    validator_with_data=get("/with-data?a=5&b=3"),
    validator_raises_http=get("/raising?n=409"),
    validator_raises_assertion=get("/raising?n=1"),
    validator_raises_type_error=get("/raising?n=2"),
    validator_calls=get("/calls?a=1&b=2"),
    any=get("/any?v=1"),
    bytes=get("/bytes?v=%C3%A4"),
    hidden=get("/hidden?n=1"),
    old_style_default=get("/old-style?n=x"),
    regex=get("/regex?text=abc1"),
    names=get(
        "/names?self=a&cls=b&call=c&values=d&scope=e&request=f&response=g&receive=h&send=i&body=j&errors=k&await_=l"
    ),
    no_query_string_key=Call("GET /default"),
    very_many=get("/list?" + "&".join(f"n={n}" for n in range(300))),
)
def _query(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.get("/required")
    async def required(n: int) -> int:
        return n

    @app.get("/default")
    async def default(n: int = 3) -> int:
        return n

    @app.get("/optional")
    async def optional(text: str | None = None) -> str | None:
        return text

    @app.get("/annotated-default")
    async def annotated_default(n: Annotated[int, Query(ge=5)] = 3) -> int:
        return n

    @app.get("/text")
    async def text(text: str, request: Request) -> Any:
        log("text", text, request.query_params)
        return ascii(text)

    @app.get("/bool")
    async def boolean(flag: bool) -> bool:
        return flag

    @app.get("/list")
    async def many(n: Annotated[list[int], Query()]) -> list[int]:
        return n

    @app.get("/list-default")
    async def list_default(n: Annotated[list[int], Query()] = [1]) -> list[int]:  # noqa: B006
        n.append(2)
        return n

    @app.get("/list-optional")
    async def list_optional(n: Annotated[list[int] | None, Query()] = None) -> list[int] | None:
        return n

    @app.get("/list-bare")
    async def list_bare(x: Annotated[list, Query()] = []) -> Any:  # type: ignore[type-arg]  # noqa: B006
        return x

    @app.get("/set")
    async def unique(n: Annotated[set[int], Query()]) -> list[int]:
        return sorted(n)

    @app.get("/frozenset")
    async def frozen(n: Annotated[frozenset[int], Query()]) -> int:
        return len(n)

    @app.get("/tuple")
    async def pair(n: Annotated[tuple[int, str], Query()]) -> tuple[int, str]:
        return n

    @app.get("/union")
    async def union(v: int | str) -> Any:
        return v

    @app.get("/union-list")
    async def union_list(v: Annotated[list[int] | list[str], Query()]) -> Any:
        return v

    @app.get("/alias")
    async def alias(n: Annotated[int, Query(alias="item-query")]) -> int:
        return n

    @app.get("/validation-alias")
    async def validation_alias(n: Annotated[int, Query(validation_alias="q")]) -> int:
        return n

    @app.get("/choices")
    async def choices(n: Annotated[int, Query(validation_alias=AliasChoices("a", "b"))]) -> int:
        return n

    @app.get("/alias-path")
    async def alias_path(n: Annotated[int, Query(validation_alias=AliasPath("a", 0))] = 9) -> int:
        return n

    @app.get("/factory")
    async def factory(n: Annotated[list[int], Query(default_factory=lambda: [7])]) -> list[int]:
        n.append(8)
        return n

    @app.get("/default-invalid")
    async def default_invalid(n: Annotated[int, Query()] = "text") -> Any:  # type: ignore[assignment]
        return n

    @app.get("/validated-default")
    async def validated_default(n: Annotated[int, Query(validate_default=True)] = "text") -> Any:  # type: ignore[assignment]
        return n

    @app.get("/json")
    async def json(data: Annotated[Json[list[int]], Query()]) -> list[int]:
        return data

    @app.get("/enum")
    async def enum(colour: Colour = Colour.RED) -> Colour:
        return colour

    @app.get("/literal-list")
    async def literals(l: Annotated[list[Literal["a", "b"]], Query()]) -> Any:  # noqa: E741
        return l

    @app.get("/datetime")
    async def moment(at: datetime) -> datetime:
        return at

    @app.get("/constraint")
    async def constraint(
        n: Annotated[int, Query(le=10, multiple_of=2)], text: Annotated[str, Query(min_length=3, max_length=5)]
    ) -> None:
        return None

    @app.get("/decimal")
    async def decimal(d: Annotated[Decimal, Query(decimal_places=1)]) -> Decimal:
        return d

    @app.get("/before")
    async def before(n: Annotated[str, BeforeValidator(lambda value: value.upper()), Query()]) -> str:
        return n

    def positive(value: int) -> int:
        log("validated", value)
        assert value > 0, "must be positive"
        return value

    @app.get("/after")
    async def after(n: Annotated[int, AfterValidator(positive)]) -> int:
        return n

    def above(value: int, info: ValidationInfo) -> int:
        log("data", info.data, info.field_name, info.mode)
        return value

    @app.get("/with-data")
    async def with_data(a: int, b: Annotated[int, AfterValidator(above)]) -> list[int]:
        return [a, b]

    def fail(value: int) -> int:
        log("validator", value)
        if value == 409:
            raise HTTPException(409, "conflict")
        raise AssertionError("no") if value == 1 else TypeError("type")

    @app.get("/raising")
    async def raising(n: Annotated[int, AfterValidator(fail)]) -> int:
        return n

    @app.get("/calls")
    async def calls(a: Annotated[int, AfterValidator(positive)], b: Annotated[int, AfterValidator(positive)]) -> int:
        return a + b

    @app.get("/any")
    async def anything(v: Any) -> Any:
        return v

    @app.get("/bytes")
    async def raw(v: bytes) -> int:
        return len(v)

    @app.get("/hidden")
    async def hidden(n: Annotated[int, Query(include_in_schema=False)] = 0) -> int:
        return n

    @app.get("/old-style")
    async def old_style(n: int = Query(3, gt=1), text: str = Query(...)) -> int:
        return n

    @app.get("/regex")
    async def regex(text: Annotated[str, Query(pattern=r"^[a-z]+$")]) -> str:
        return text

    @app.get("/names")
    async def names(
        self: str,
        cls: str,
        call: str,
        values: str,
        scope: str,
        request: str,
        response: str,
        receive: str,
        send: str,
        body: str,
        errors: str,
        await_: str,
    ) -> list[str]:
        return [self, cls, call, values, scope, request, response, receive, send, body, errors, await_]

    return app


@CASES.many(
    "model",
    query=get("/query?limit=3&tags=a&tags=b&order=name"),
    query_empty=get("/query"),
    query_errors=get("/query?limit=x&order=1"),
    query_extra_is_ignored=get("/query?other=1"),
    query_repeated_scalar=get("/query?limit=1&limit=2"),
    query_forbidding=get("/forbidding?limit=1&the-name=x"),
    query_forbidding_extra=get("/forbidding?limit=1&other=2&other=3"),
    query_forbidding_python_name=get("/forbidding?name=x"),
    query_allowing=get("/allowing?limit=1&a=1&b=2&b=3"),
    query_camel=get("/camel?firstName=A&lastNames=B&lastNames=C"),
    query_camel_by_name=get("/camel?first_name=A&last_names=B"),
    query_camel_missing=get("/camel"),
    query_by_name=get("/by-name?number=1"),
    query_by_alias_refused=get("/by-name?n=1"),
    query_choices=get("/choices?b=1"),
    query_optional_absent=get("/optional"),
    query_optional_present=get("/optional?limit=2"),
    query_optional_unrelated=get("/optional?x=2"),
    query_checked=get("/checked?low=1&high=2"),
    query_checked_error=get("/checked?low=3&high=2"),
    query_checked_http_exception=get("/checked?low=2&high=2"),
    query_order_of_the_input=get("/checked?x=1&high=2"),
    query_order_of_the_extras=get("/allowing?b=1&limit=2&a=3"),
    query_order_of_known=get("/noted?b=2&a=1&other=3"),
    query_order_in_a_validator_of_the_parameter=get("/noted-outside?b=2&a=1&other=3"),
    query_order_with_a_constructor=get("/constructed?b=2&a=1&other=3"),
    query_order_of_errors=get("/query?x=1&order=1&limit=x"),
    query_with_scalar=get("/mixed?limit=1&n=2"),
    query_with_scalar_errors=get("/mixed?limit=x&n=y"),
    query_two_models=get("/two-models?limit=1&low=1&high=3"),
    headers=get("/headers", x_request_id="r", save_data="true"),
    headers_repeated=_headers(("x-request-id", "r"), ("x-tag", "a"), ("x-tag", "b"), line="GET /headers"),
    headers_missing=get("/headers"),
    headers_with_underscore=_headers(("x_request_id", "r"), line="GET /headers"),
    headers_alias=_headers(("x-request-id", "r"), ("if-match", "e"), line="GET /headers"),
    headers_forbidding=get("/headers-forbidding"),
    headers_forbidding_extra=get("/headers-forbidding", x_other="1"),
    headers_allowing=_headers(("x-known", "1"), ("a", "1"), ("a", "2"), line="GET /headers-allowing"),
    headers_underscores=_headers(("x_request_id", "r"), line="GET /headers-underscores"),
    cookies=get("/cookies", cookie="session=s; visits=3"),
    cookies_missing=get("/cookies"),
    cookies_forbidding=get("/cookies-forbidding", cookie="session=s; other=1"),
)
def _models(new: New, log: Journal) -> FastAPI:
    app = new()
    for path, model in {
        "/query": Page,
        "/forbidding": Forbidding,
        "/allowing": Allowing,
        "/camel": Camel,
        "/by-name": OnlyByName,
        "/choices": Choices,
        "/checked": Checked,
    }.items():
        app.add_api_route(path, _endpoint(Annotated[model, Query()], log))
    for path, model in {
        "/headers": Headed,
        "/headers-forbidding": HeadedForbidding,
        "/headers-allowing": HeadedAllowing,
    }.items():
        app.add_api_route(path, _endpoint(Annotated[model, Header()], log))
    app.add_api_route("/headers-underscores", _endpoint(Annotated[Headed, Header(convert_underscores=False)], log))
    app.add_api_route("/cookies", _endpoint(Annotated[Crumbs, Cookie()], log))
    app.add_api_route("/cookies-forbidding", _endpoint(Annotated[CrumbsForbidding, Cookie()], log))

    class Noted(BaseModel):
        a: int = 0
        b: int = 0

        @model_validator(mode="before")
        @classmethod
        def note(cls, data: Any) -> Any:
            log("before", data)
            return data

    app.add_api_route("/noted", _endpoint(Annotated[Noted, Query()], log))

    def outside(data: Any) -> Any:
        log("outside", data)
        return data

    class Plain(BaseModel):
        a: int = 0
        b: int = 0

    app.add_api_route("/noted-outside", _endpoint(Annotated[Plain, BeforeValidator(outside), Query()], log))

    class Constructed(BaseModel):
        a: int = 0
        b: int = 0

        def __init__(self, **values: Any) -> None:
            log("constructor", values)
            super().__init__(**values)

    app.add_api_route("/constructed", _endpoint(Annotated[Constructed, Query()], log))

    @app.get("/optional")
    async def optional(page: Annotated[Page | None, Query()] = None) -> Page | None:
        return page

    @app.get("/mixed")
    async def mixed(page: Annotated[Page, Query()], n: Annotated[int, Query()]) -> Any:
        return [page, n]

    @app.get("/two-models")
    async def two_models(page: Annotated[Page, Query()], checked: Annotated[Checked, Query()]) -> Any:
        return [page, checked]

    return app


def _endpoint(annotation: Any, log: Journal) -> Callable[..., Any]:
    async def endpoint(data: Any) -> Any:
        log("data", data, data.model_fields_set)
        return data

    endpoint.__annotations__["data"] = annotation
    return endpoint


@CASES.many(
    "header",
    converted=_headers(("user-agent", "x"), line="GET /agent"),
    converted_upper_case=_headers(("User-Agent", "x"), line="GET /agent"),
    converted_with_underscore=_headers(("user_agent", "x"), line="GET /agent"),
    not_converted=_headers(("user_agent", "x"), line="GET /underscore"),
    not_converted_with_hyphen=_headers(("user-agent", "x"), line="GET /underscore"),
    list=_headers(("x-token", "a"), ("X-Token", "b,c"), line="GET /list"),
    list_absent=get("/list"),
    repeated_scalar=_headers(("x-n", "1"), ("x-n", "2"), line="GET /integer"),
    integer_invalid=get("/integer", x_n="one"),
    alias=get("/alias", x_alias="v"),
    alias_mixed_case=get("/alias-mixed", x_mixed="v"),
    choices=get("/choices", x_b="2"),
    default=get("/default"),
    blank=get("/default", x_text=""),
    latin1=_raw("GET /default", (b"x-text", b"\xe4\xff")),
    spaces=_raw("GET /default", (b"x-text", b"  v  ")),
    json=get("/json", x_data="[1]"),
    hyphen_error_location=get("/agent"),
    from_iterator=Call("GET /default", scope={"headers": ((b"x-text", b"a"), (b"host", b"h"))}),
)
def _header(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.get("/agent")
    async def agent(user_agent: Annotated[str, Header()]) -> str:
        return user_agent

    @app.get("/underscore")
    async def underscore(user_agent: Annotated[str | None, Header(convert_underscores=False)] = None) -> Any:
        return user_agent

    @app.get("/list")
    async def many(x_token: Annotated[list[str] | None, Header()] = None) -> Any:
        return x_token

    @app.get("/integer")
    async def integer(x_n: Annotated[int, Header()]) -> int:
        return x_n

    @app.get("/alias")
    async def alias(value: Annotated[str, Header(alias="x-alias")]) -> str:
        return value

    @app.get("/alias-mixed")
    async def alias_mixed(value: Annotated[str, Header(alias="X-Mixed")]) -> str:
        return value

    @app.get("/choices")
    async def choices(value: Annotated[int, Header(validation_alias=AliasChoices("x-a", "x-b"))]) -> int:
        return value

    @app.get("/default")
    async def default(x_text: Annotated[str, Header()] = "default") -> str:
        return ascii(x_text)

    @app.get("/json")
    async def json(x_data: Annotated[Json[list[int]], Header()]) -> list[int]:
        return x_data

    return app


@CASES.many(
    "cookie",
    present=get("/text", cookie="session=abc"),
    absent=get("/text"),
    quoted=get("/text", cookie='session="a\\"b"'),
    without_name=get("/text", cookie="lonely; session=x"),
    repeated=get("/text", cookie="session=1; session=2"),
    two_headers=_headers(("cookie", "session=1"), ("cookie", "other=2; session=3"), line="GET /text"),
    semicolons=get("/text", cookie=";;session=x;"),
    non_ascii=_raw("GET /text", (b"cookie", b"session=\xe4")),
    integer=get("/integer", cookie="n=x"),
    alias=get("/alias", cookie="the-session=v"),
    blank=get("/text", cookie="session="),
)
def _cookie(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.get("/text")
    async def text(request: Request, session: Annotated[str | None, Cookie()] = None) -> Any:
        return [ascii(session), ascii(request.cookies)]

    @app.get("/integer")
    async def integer(n: Annotated[int, Cookie()]) -> int:
        return n

    @app.get("/alias")
    async def alias(session: Annotated[str, Cookie(alias="the-session")]) -> str:
        return session

    return app


@CASES.many(
    "order",
    all_kinds_of_errors=Call("GET /all/x?q=x", [(b"x-h", b"x"), (b"cookie", b"c=x")]),
    all_valid=Call("GET /all/1?q=2", [(b"x-h", b"3"), (b"cookie", b"c=4")]),
    errors_of_dependencies_first=get("/nested?a=x&b=y&c=z"),
    repeated_errors_of_a_shared_dependency=get("/diamond?a=x"),
    handler_is_not_called=get("/nested?a=1&b=y&c=1"),
    same_name_twice=get("/same?n=1"),
    same_name_twice_invalid=get("/same?n=x"),
)
def _order(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        log("invalid", error)
        return Response(str(error), 422)

    @app.get("/all/{p}")
    async def kinds(
        c: Annotated[int, Cookie()], x_h: Annotated[int, Header()], q: int, p: int, missing: Annotated[int, Query()] = 0
    ) -> list[int]:
        return [c, x_h, q, p]

    async def inner(a: int) -> int:
        log("inner", a)
        return a

    async def outer(b: int, a: Annotated[int, Depends(inner)]) -> int:
        log("outer", a, b)
        return a + b

    async def sibling() -> int:
        log("sibling")
        return 1

    @app.get("/nested", dependencies=[Depends(sibling)])
    async def nested(c: int, o: Annotated[int, Depends(outer)], s: Annotated[int, Depends(sibling)]) -> int:
        log("handler")
        return c + o + s

    async def left(a: Annotated[int, Depends(inner)]) -> int:
        return a

    @app.get("/diamond")
    async def diamond(a: Annotated[int, Depends(left)], b: Annotated[int, Depends(inner)]) -> int:
        return a + b

    async def typed(n: str) -> str:
        return n

    @app.get("/same")
    async def same(n: int, text: Annotated[str, Depends(typed)]) -> Any:
        return [n, text]

    return app


@CASES.many(
    "signature",
    deferred=get("/deferred?n=3&tags=a&tags=b"),
    deferred_invalid=get("/deferred?n=x"),
    keyword_only=get("/keyword?n=1"),
    positional_only=get("/positional?n=1"),
    variadic=get("/variadic?args=1&kwargs=2"),
    variadic_missing=get("/variadic"),
    without_annotations=get("/bare?a=1&b=2"),
    instance=get("/instance?n=1"),
    partial=get("/partial?b=2"),
    method=get("/method?n=1"),
    wrapped=get("/wrapped?n=1"),
    sync_wrapper_of_async=get("/sync-wrapper?n=1"),
    async_wrapper_of_sync=get("/async-wrapper?n=1"),
    own_signature=get("/own-signature?n=1"),
    class_as_handler=get("/class?n=1"),
    sync=get("/sync?n=1"),
    sync_invalid=get("/sync?n=x"),
    default_of_another_type=get("/other-default"),
)
def _signatures(new: New, log: Journal) -> FastAPI:
    import functools
    import inspect

    app = new()

    async def deferred(n: Any, tags: Any = ()) -> Any:
        return [n, tags]

    deferred.__annotations__ = {"n": "int", "tags": "Annotated[list[str], Query()]", "return": "Any"}
    app.get("/deferred")(deferred)

    @app.get("/keyword")
    async def keyword(*, n: int) -> int:
        return n

    @app.get("/positional")
    async def positional(n: int, /) -> int:
        return n

    @app.get("/variadic")
    async def variadic(*args: int, **kwargs: int) -> Any:
        return [args, kwargs]

    async def bare(a: Any, b: Any = None) -> Any:
        return [a, b]

    bare.__annotations__ = {}
    app.get("/bare")(bare)

    class Callable_:  # noqa: N801
        async def __call__(self, n: int) -> int:
            return n

        async def method(self, n: int) -> int:
            return n

    app.get("/instance", name="instance")(Callable_())
    app.get("/method")(Callable_().method)

    async def added(a: int, b: int) -> int:
        return a + b

    app.get("/partial", name="partial")(functools.partial(added, a=1))

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            log("wrapper", args, kwargs)
            return await function(*args, **kwargs)

        return wrapper

    @app.get("/wrapped")
    @logged
    async def wrapped(n: int) -> int:
        return n

    def sync_wrapper(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @app.get("/sync-wrapper")
    @sync_wrapper
    async def inner(n: int) -> int:
        return n

    def async_wrapper(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @app.get("/async-wrapper")
    @async_wrapper
    def inner_sync(n: int) -> int:
        return n

    async def own(**values: Any) -> Any:
        return values

    own.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("n", inspect.Parameter.KEYWORD_ONLY, annotation=int)]
    )
    app.get("/own-signature")(own)

    class Answer:
        def __init__(self, n: int) -> None:
            self.n = n

    app.get("/class", response_model=None)(Answer)

    @app.get("/sync")
    def sync(n: int) -> int:
        return n

    @app.get("/other-default")
    async def other_default(n: int = 1.5) -> Any:  # type: ignore[assignment]
        return n

    app.get("/unannotated")(unannotated(keyword))
    return app


LAZY = "fast routes parse the query string and cookies when a parameter is read, FastAPI before the first dependency"


@CASES.many(
    "changed",
    differs=dict.fromkeys(("query_string", "query_string_without_parameters", "cookies"), LAZY),
    path_params=get("/path/1?n=5"),
    path_params_replaced=get("/path/1?n=5&replace=1"),
    query_string=get("/query?n=1"),
    query_string_without_parameters=get("/query-unused?n=1"),
    headers_appended=get("/headers", x_n="1"),
    cookies=get("/cookies", cookie="n=1"),
    state=get("/state"),
    body=Call("POST /body", [(b"content-type", b"application/json")], [{"type": "http.request", "body": b"1"}]),
)
def _changed(new: New, log: Journal) -> FastAPI:
    """A dependency changes the scope before the parameters of another dependency and of the handler are read."""
    app = new()

    async def change(request: Request) -> None:
        n = request.scope["query_string"].decode().partition("=")[2][:1] or "7"
        if "replace" in str(request.scope["query_string"]):
            request.scope["path_params"] = {"n": n}
        elif request.path_params:
            request.path_params["n"] = n
        request.scope["query_string"] = b"n=2"
        request.scope["headers"].append((b"x-added", b"3"))
        request.scope["headers"].append((b"cookie", b"n=4"))
        request.scope["state"]["n"] = 5

    async def again(n: int) -> int:
        return n

    @app.get("/path/{n}", dependencies=[Depends(change)])
    async def path(n: int, request: Request) -> Any:
        return [n, request.path_params]

    @app.get("/query", dependencies=[Depends(change)])
    async def query(n: int, m: Annotated[int, Depends(again)], request: Request) -> Any:
        return [n, m, request.query_params.multi_items()]

    @app.get("/query-unused", dependencies=[Depends(change)])
    async def query_unused(request: Request) -> Any:
        return request.query_params.multi_items()

    @app.get("/headers", dependencies=[Depends(change)])
    async def headers(request: Request, x_added: Annotated[int, Header()], x_n: Annotated[int, Header()]) -> Any:
        return [x_added, x_n, request.headers.get("x-added")]

    @app.get("/cookies", dependencies=[Depends(change)])
    async def cookies(request: Request, n: Annotated[int | None, Cookie()] = None) -> Any:
        return [n, request.cookies]

    @app.get("/state", dependencies=[Depends(change)])
    async def state(request: Request) -> Any:
        return request.state.n

    async def change_body(request: Request) -> None:
        log("read", await request.body())
        request._body = b"2"

    @app.post("/body", dependencies=[Depends(change_body)])
    async def body(request: Request) -> Any:
        return await request.json()

    return app
