"""Drive an ASGI application by hand and record everything that its server and its code can observe.

A journal holds one entry per event, in the order of the events: each call of `receive` and its message, each message
sent, whatever the application's own code notes, and at the end the exception raised to the server, the ASGI scope as
an outer middleware sees it, and a context variable.
"""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote

import anyio
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.background import BackgroundTasks
from starlette.datastructures import FormData, Headers, QueryParams, State, UploadFile
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Scope

from app.web import fast_routes

NOTE: ContextVar[str] = ContextVar("NOTE", default="unset")
"""A context variable of the driven application. The journal ends with its value in the server's context."""

DEADLINE = 20.0
"""Seconds until an exchange counts as hung. No exchange waits for the clock."""

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}|(?<=cancel scope )[0-9a-f]+|<Task .*?]>")
"""What differs between two runs of the same code: addresses of objects, names of tasks."""
_PRIMITIVE = (bool, int, bytes, type(None))


def describe(value: object) -> object:
    """Return a value that compares equal for two applications that were built by the same factory."""
    if isinstance(value, _PRIMITIVE):
        return value
    if isinstance(value, (str, float)):
        return _plain(value) if type(value) is str else (_class(value), _plain(str(value)))
    if isinstance(value, BaseException):
        return _describe_exception(value)
    if isinstance(value, State):
        return ("State", describe(value._state))
    if isinstance(value, Response):
        return (_class(value), value.status_code, value.raw_headers, bytes(getattr(value, "body", b"")))
    if isinstance(value, BackgroundTasks):
        return (f"{type(value).__module__}.{_class(value)}", len(value.tasks))
    if isinstance(value, BaseRoute):
        return (_class(value), getattr(value, "path", None), getattr(value, "name", None))
    if isinstance(value, UploadFile):
        return ("UploadFile", value.filename, value.size, value.file.closed, str(value.headers))
    if isinstance(value, (FormData, QueryParams)):
        return (_class(value), describe(value.multi_items()))
    if isinstance(value, Headers):
        return ("Headers", value.raw)
    if isinstance(value, BaseModel):
        return (_class(value), _plain(repr(value)))
    if isinstance(value, Mapping):
        return (_class(value), [(describe(key), describe(item)) for key, item in value.items()])
    if isinstance(value, (set, frozenset)):
        return (_class(value), sorted((describe(item) for item in value), key=repr))
    if isinstance(value, (list, tuple)):
        return (_class(value), [describe(item) for item in value])
    if isinstance(value, type) or inspect.isroutine(value):
        return _plain(f"{value.__module__}.{value.__qualname__}")
    if type(value).__repr__ is object.__repr__ or isinstance(value, FastAPI):
        return (_class(value),)
    return (_class(value), _plain(repr(value)))


def _class(value: object) -> str:
    return type(value).__qualname__


def _plain(text: str) -> str:
    return _ADDRESS.sub("0x", text)


def _describe_exception(error: BaseException, depth: int = 0) -> object:
    if depth > 8:
        return _class(error)
    further: tuple[object, ...] = ()
    if isinstance(error, BaseExceptionGroup):
        further = tuple(_describe_exception(item, depth + 1) for item in error.exceptions)
    return (
        f"{type(error).__module__}.{_class(error)}",
        _plain(str(error)),
        [
            describe(argument) if not isinstance(argument, Sequence) else _plain(repr(argument))
            for argument in error.args
        ],
        ("cause", error.__cause__ and _describe_exception(error.__cause__, depth + 1)),
        ("context", error.__context__ and _describe_exception(error.__context__, depth + 1)),
        ("suppressed", error.__suppress_context__),
        ("notes", getattr(error, "__notes__", None)),
        ("errors", describe(errors()) if callable(errors := getattr(error, "errors", None)) else None),
        ("body", describe(getattr(error, "body", None))),
        *further,
    )


def describe_scope(scope: Scope) -> list[tuple[str, object]]:
    """Return what an outer middleware can read from a scope after the request."""
    return [(key, _plain(repr(describe(value)))) for key, value in sorted(scope.items())]


class Journal(list[object]):
    """The events of one application in their order. Call it to note an event."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.cancel: Callable[[], None] = _not_running
        self._events: dict[str, asyncio.Event] = {}
        self._first: dict[str, object] = {}

    def __call__(self, *event: object) -> None:
        self.append(describe(event))

    def same(self, name: str, value: object) -> None:
        """Note whether `value` is the object that was first noted under `name`."""
        self("same", name, self._first.setdefault(name, value) is value)

    def restart(self) -> None:
        """Forget everything, for another exchange with the same application."""
        self.clear()
        self._events.clear()
        self._first.clear()
        self.operations = 0

    def event(self, name: str) -> asyncio.Event:
        """Return an event by which two requests wait for one another."""
        return self._events.setdefault(name, asyncio.Event())


def _not_running() -> None:
    raise RuntimeError("no request is running")


Item = Message | BaseException
After = Literal["block", "disconnect", "error"]


@dataclass(frozen=True)
class Call:
    """A request, and how its server behaves."""

    line: str
    """Method and target, as in `GET /items?limit=1`."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    messages: Sequence[Item] = ({"type": "http.request", "body": b"", "more_body": False},)
    after: After = "block"
    """What `receive` does when its messages have run out."""
    send_fails_at: int | None = None
    """The message, counted from 0, at which `send` raises OSError: the client is gone."""
    spec_version: str = "2.4"
    scope: Mapping[str, object] = field(default_factory=dict)
    hidden: bool = False
    """The application routes a copy of the scope, so that the operation leaves no trace in the server's scope."""
    cancels: bool = False
    """The server's own cancel scope is the one that `Journal.cancel` cancels."""

    def build_scope(self) -> Scope:
        """Return a new ASGI scope."""
        method, target = self.line.split(" ", 1)
        raw_path, _, query = target.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": self.spec_version},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path),
            "raw_path": raw_path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [*(() if b"host" in dict(self.headers) else [(b"host", b"testserver")]), *self.headers],
            "client": ("203.0.113.7", 50000),
            "server": ("testserver", 80),
            "state": {},
            **self.scope,
        }


async def exchange(app: ASGIApp, call: Call, journal: Journal) -> None:
    """Run one request through `app` and add its events to the journal."""
    scope = call.build_scope()
    messages = iter(call.messages)
    sent = 0

    async def receive() -> Message:
        item = next(messages, None)
        if item is None:
            journal("receive", call.after)
            if call.after == "disconnect":
                return {"type": "http.disconnect"}
            if call.after == "error":
                raise RuntimeError("receive was called after the end")
            await anyio.sleep_forever()
            raise AssertionError
        journal("receive", item)
        if isinstance(item, BaseException):
            raise item
        return dict(item)

    async def send(message: Message) -> None:
        nonlocal sent
        journal("send", message)
        if sent == call.send_fails_at:
            raise OSError("the client has gone")
        sent += 1

    try:
        with anyio.fail_after(DEADLINE):
            if call.cancels:
                with anyio.CancelScope() as cancel_scope:
                    journal.cancel = cancel_scope.cancel
                    await app(scope, receive, send)
                journal("cancelled", cancel_scope.cancelled_caught)
            else:
                await app(scope, receive, send)
    except BaseException as error:  # noqa: BLE001 - what reaches the server is what is compared
        journal("raised", error)
    else:
        journal("returned")
    if call.hidden or ("fastapi_inner_astack" in scope and scope["type"] == "http"):
        journal.operations += 1
    journal.append(describe_scope(scope))
    journal("context", NOTE.get())


Drive = Callable[[ASGIApp, Journal], Awaitable[None]]
Reasons = Mapping[str, str]
New = Callable[..., FastAPI]
Builder = Callable[[New, Journal], ASGIApp]
When = Literal["never", "first", "last"]


_KEPT: list["Subject"] = []
"""FastAPI caches an endpoint's file and line under its id, which a later function gets when an application is freed."""


class Subject:
    """An application of a factory, plain or with fast routes, and its journal."""

    def __init__(self, build: Builder, when: When) -> None:
        _KEPT.append(self)
        self.journal = Journal()
        self._created: list[FastAPI] = []
        self._when = when
        self.app = build(self._new, self.journal)
        if when == "last":
            for each in self._created:
                fast_routes.install(each)

    def _new(self, *args: Any, **options: Any) -> FastAPI:
        app = FastAPI(*args, **{"openapi_url": None, **options})
        if self._when == "first":
            fast_routes.install(app)
        self._created.append(app)
        return app

    @property
    def taken(self) -> int:
        """Count the requests that took the fast path."""
        return sum(fast_routes.taken(each) for each in self._created)


@dataclass(frozen=True)
class Case:
    """A factory of applications and the requests with which its applications are compared."""

    id: str
    build: Builder
    drive: Drive
    slow: str = ""
    """Why FastAPI serves these requests. Empty: all of them take the fast path."""
    fast: int | Mapping[When, int] = 0
    """How many of the requests of a slow case take the fast path nevertheless."""
    differs: str = ""
    """Why the journals differ. Empty: they are equal."""
    subjects: dict[When, Subject] | None = None
    """The applications that the case shares with the other cases of its factory."""

    async def run(self, when: When) -> tuple[Journal, int]:
        """Return the journal of the requests, and how many of them took the fast path."""
        subject = self._subject(when)
        subject.journal.restart()
        before = subject.taken if when != "never" else 0
        await self.drive(subject.app, subject.journal)
        return subject.journal, subject.taken - before if when != "never" else 0

    def expected_taken(self, when: When, operations: int) -> int:
        """Return how many of the operation requests have to take the fast path."""
        if not self.slow:
            return operations
        return self.fast if isinstance(self.fast, int) else self.fast[when]

    def _subject(self, when: When) -> Subject:
        if self.subjects is None:
            return Subject(self.build, when)
        if when not in self.subjects:
            self.subjects[when] = Subject(self.build, when)
        return self.subjects[when]


def in_turn(*calls: Call) -> Drive:
    """Send the requests one after the other, each in a task and so in a context of its own."""

    async def drive(app: ASGIApp, journal: Journal) -> None:
        for call in calls:
            await asyncio.create_task(exchange(app, call, journal))

    return drive


def together(*calls: Call) -> Drive:
    """Send the requests at the same time."""

    async def drive(app: ASGIApp, journal: Journal) -> None:
        await asyncio.gather(*(asyncio.create_task(exchange(app, call, journal)) for call in calls))

    return drive


def get(target: str, /, **headers: str) -> Call:
    """Return a GET request. An underscore in the name of a header is a hyphen."""
    return Call(f"GET {target}", tuple((_header(name), value.encode("latin-1")) for name, value in headers.items()))


def _header(name: str) -> bytes:
    return name.replace("_", "-").encode()


JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def post(target: str, body: bytes | Sequence[bytes], content_type: str | None = JSON, /, **options: Any) -> Call:
    """Return a POST request whose body arrives in one message or in several."""
    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    chunks = [body] if isinstance(body, bytes) else list(body)
    messages = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
        for index, chunk in enumerate(chunks)
    ]
    return Call(f"POST {target}", (*headers, *options.pop("headers", ())), messages, **options)


def multipart(*parts: tuple[str, bytes], boundary: str = "b0undary") -> tuple[bytes, str]:
    """Return a multipart body and its content type. Each part is its disposition's parameters and its content."""
    lines = [
        f"--{boundary}\r\nContent-Disposition: form-data; {parameters}\r\n\r\n".encode() + content + b"\r\n"
        for parameters, content in parts
    ]
    return b"".join(lines) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class Cases(list[Case]):
    """The cases of one kind, filled by decorators."""

    def one(
        self,
        name: str,
        *calls: Call | str,
        drive: Drive | None = None,
        slow: str = "",
        fast: int | Mapping[When, int] = 0,
        differs: str = "",
    ) -> Callable[[Builder], Builder]:
        """Compare one application that is built anew, with one or several requests."""
        requests = [call if isinstance(call, Call) else Call(call) for call in calls]

        def add(build: Builder) -> Builder:
            self.append(Case(name, build, drive or in_turn(*requests), slow, fast, differs))
            return build

        return add

    def many(
        self,
        prefix: str,
        table: Mapping[str, Call] | None = None,
        /,
        *,
        slow: Reasons | str = "",
        differs: Reasons | None = None,
        **calls: Call,
    ) -> Callable[[Builder], Builder]:
        """Compare one application with each of the requests. Reasons are given by name, or one for all."""

        def add(build: Builder) -> Builder:
            subjects: dict[When, Subject] = {}
            for name, call in {**(table or {}), **calls}.items():
                reason = slow if isinstance(slow, str) else slow.get(name, "")
                difference = (differs or {}).get(name, "")
                self.append(Case(f"{prefix}-{name}", build, in_turn(call), reason, 0, difference, subjects))
            return build

        return add


def unannotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remove the annotation of the returned value, as users leave it out."""
    function.__annotations__.pop("return", None)
    return function


def swallow(_type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> bool:
    """Suppress any exception, as an `__exit__` that returns True does."""
    return True
