"""One instrumentation and one application in this process: `python -m tests.instrumentation.scenarios NAME WHEN`.

WHEN is "never" for plain FastAPI, "first" or "last" for fast routes that are installed before or after the
instrumentation. Prints, as JSON, the journal of the requests and what the instrumentation reported.
"""

# The packages are not installed where mypy runs.
# mypy: disable-error-code="import-not-found, misc, untyped-decorator"

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from app.web import fast_routes
from tests.support.asgi_comparison import Call, Journal, describe, exchange, get, post

CALLS = (
    get("/items/1?q=a&q=b", cookie="session=secret"),
    get("/items/x"),
    get("/sync"),
    post("/items", b'{"name": "a"}'),
    post("/items", b'{"name": 1}'),
    post("/items", b"{"),
    get("/unavailable"),
    get("/teapot"),
    get("/crash"),
    get("/sync-crash"),
    get("/dependency"),
    get("/dependency?fail=1"),
    get("/background"),
    get("/stream"),
    get("/v1/included/7"),
    get("/mounted/inner/7"),
    get("/returned"),
    get("/nowhere"),
    Call("PUT /items/1"),
    Call("GET /items/1/"),
)


class Item(BaseModel):
    name: str


async def dependency(request: Request, fail: bool = False) -> AsyncIterator[int]:
    if fail:
        raise LookupError("dependency")
    yield 1


def add_operations(app: FastAPI, log: Journal) -> None:
    """Add operations of every kind that an instrumentation treats in its own way."""

    @app.get("/items/{n}")
    async def read_item(request: Request, n: int, q: Annotated[list[str] | None, Query()] = None) -> dict[str, Any]:
        return {"n": n, "q": q}

    @app.get("/sync")
    def sync(request: Request) -> str:
        return "sync"

    @app.post("/items")
    async def create_item(request: Request, item: Item) -> Item:
        return item

    @app.get("/unavailable")
    async def unavailable(request: Request) -> None:
        raise HTTPException(503, "unavailable")

    @app.get("/teapot")
    async def teapot(request: Request) -> None:
        raise HTTPException(418)

    @app.get("/crash")
    async def crash(request: Request) -> None:
        raise KeyError("crash")

    @app.get("/sync-crash")
    def sync_crash(request: Request) -> None:
        raise KeyError("sync crash")

    @app.get("/dependency")
    async def with_dependency(request: Request, n: Annotated[int, Depends(dependency)]) -> int:
        return n

    @app.get("/background")
    async def background(request: Request, tasks: BackgroundTasks) -> str:
        tasks.add_task(log, "task")
        return "ok"

    @app.get("/stream")
    async def stream(request: Request) -> Response:
        return StreamingResponse(iter([b"a", b"b"]))

    @app.get("/returned")
    async def returned(request: Request) -> Response:
        return PlainTextResponse("returned")

    router = APIRouter(prefix="/included")

    @router.get("/{n}")
    async def included(request: Request, n: int) -> int:
        return n

    app.include_router(router, prefix="/v1")
    inner = FastAPI(openapi_url=None)

    @inner.get("/inner/{n}")
    async def mounted(request: Request, n: int) -> int:
        return n

    app.mount("/mounted", inner)


class Scenario:
    """An application under one instrumentation. `output` is called when the requests have been answered."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.log = Journal()
        self.calls = list(CALLS)
        self.output: Callable[[], list[Any]] = list

    def application(self, instrument: Callable[[FastAPI], None] | None = None, **options: Any) -> FastAPI:
        """Return a new application with operations, the instrumentation and fast routes."""
        app = FastAPI(openapi_url=None, **options)
        if self.when == "first":
            fast_routes.install(app)
        add_operations(app, self.log)
        if instrument is not None:
            instrument(app)
        if self.when == "last":
            fast_routes.install(app)
        return app

    async def run(self, app: FastAPI) -> dict[str, Any]:
        """Send the requests, and return everything that was recorded."""
        for call in self.calls:
            await asyncio.create_task(exchange(app, call, self.log))
        return {
            "journal": [_constant(repr(event)) for event in self.log],
            "output": [_constant(repr(describe(item))) for item in self.output()],
            "operations": self.log.operations,
            "taken": fast_routes.taken(app) + sum(fast_routes.taken(each) for each in _mounted(app)),
        }


def _without(attributes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key not in names}


def _mounted(app: FastAPI) -> list[FastAPI]:
    return [route.app for route in app.routes if isinstance(getattr(route, "app", None), FastAPI)]  # type: ignore[attr-defined]


_CHANGING = re.compile(
    r"\d{10}\.\d+|\d{4}-\d\d-\d\dT[\d:.]+Z?|\b(?:0x)?[0-9a-f]{32}\b|\b(?:0x)?[0-9a-f]{16}\b"
    r"|(?<=b'x-ratelimit-reset', b')\d+|(?<=b'retry-after', b')\d+"
)


def _constant(text: str) -> str:
    """Return a text that is the same in two processes: without times and identifiers."""
    return _CHANGING.sub("#", text)


def _sentry(scenario: Scenario, *, style: str, codes: Any = None) -> FastAPI:
    import sentry_sdk
    from sentry_sdk.integrations.fastapi import FastApiIntegration
    from sentry_sdk.integrations.starlette import StarletteIntegration
    from sentry_sdk.transport import Transport

    reported: list[Any] = []

    class Collect(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            reported.extend(item.payload.json for item in envelope.items if item.payload.json)

    options: dict[str, Any] = {"transaction_style": style}
    if codes is not None:
        options["failed_request_status_codes"] = codes
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=Collect,
        traces_sample_rate=1.0,
        send_default_pii=True,
        max_request_body_size="always",
        integrations=[StarletteIntegration(**options), FastApiIntegration(**options)],
        default_integrations=False,
    )
    scenario.output = lambda: [_sentry_event(event) for event in reported]
    return scenario.application()


def _sentry_event(event: dict[str, Any]) -> dict[str, Any]:
    trace = event.get("contexts", {}).get("trace", {})
    return {
        "type": event.get("type"),
        "transaction": event.get("transaction"),
        "source": event.get("transaction_info"),
        "level": event.get("level"),
        "request": event.get("request"),
        "tags": event.get("tags"),
        "user": event.get("user"),
        "trace": [trace.get(key) for key in ("op", "status", "origin", "description")],
        "data": _without(trace.get("data", {}), "thread.id"),
        "spans": [(span.get("op"), span.get("description"), span.get("status")) for span in event.get("spans", [])],
        "exceptions": [
            (
                value["type"],
                value["value"],
                value.get("mechanism"),
                [
                    (frame["function"], frame.get("vars"))
                    for frame in value.get("stacktrace", {}).get("frames", [])
                    if frame.get("module", "").endswith("scenarios") or frame.get("module") == "__main__"
                ],
            )
            for value in event.get("exception", {}).get("values", [])
        ],
    }


def sentry_url(scenario: Scenario) -> FastAPI:
    return _sentry(scenario, style="url")


def sentry_endpoint(scenario: Scenario) -> FastAPI:
    return _sentry(scenario, style="endpoint")


def sentry_status_codes(scenario: Scenario) -> FastAPI:
    return _sentry(scenario, style="endpoint", codes={418, 503})


class _Sdk:
    """Providers of the OpenTelemetry SDK that keep what they get in memory."""

    def __init__(self) -> None:
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.spans, self.metrics, self.logs = (
            InMemorySpanExporter(),
            InMemoryMetricReader(),
            InMemoryLogRecordExporter(),
        )
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meter_provider = MeterProvider([self.metrics])
        self.logger_provider = LoggerProvider()
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self.logs))

    def output(self) -> list[Any]:
        """Return what was recorded, without times and identifiers."""
        return [*describe_spans(self.spans.get_finished_spans()), *self._metrics(), *self._logs()]

    def _metrics(self) -> list[Any]:
        data: Any = self.metrics.get_metrics_data()
        return [
            (
                metric.name,
                metric.unit,
                dict(point.attributes),
                getattr(point, "count", None) or getattr(point, "value", None),
            )
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]

    def _logs(self) -> list[Any]:
        return [
            (
                item.log_record.event_name,
                item.log_record.body,
                str(item.log_record.severity_number),
                _log_attributes(item),
            )
            for item in self.logs.get_finished_logs()
        ]


def _log_attributes(item: Any) -> dict[str, Any]:
    attributes = dict(item.log_record.attributes or {})
    return {key: _own_frames(value) if key.endswith("stacktrace") else value for key, value in attributes.items()}


# Logfire's attributes of stack frames outside of installed packages: the dispatcher of fast routes is such a frame.
FRAMES = ("code.filepath", "code.function", "code.lineno", "logfire.exception.fingerprint")


def describe_spans(spans: Any) -> list[Any]:
    """Return spans with the names of their parents."""
    names = {span.context.span_id: span.name for span in spans}
    return [
        (
            span.name,
            str(span.kind),
            names.get(span.parent.span_id) if span.parent else None,
            {key: _own_frames(value) for key, value in _without(dict(span.attributes), *FRAMES).items()},
            str(span.status.status_code),
            [
                (event.name, {key: _own_frames(value) for key, value in event.attributes.items()})
                for event in span.events
            ],
        )
        for span in spans
    ]


def _own_frames(value: Any) -> Any:
    """Return the frames of this file, and the last line, of a stack trace."""
    if not isinstance(value, str) or "Traceback (most recent call last)" not in value:
        return value
    lines = value.strip().splitlines()
    return [line.rpartition("in ")[2] for line in lines if __file__ in line] + lines[-1:]


def opentelemetry_app(scenario: Scenario) -> FastAPI:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    sdk = _Sdk()
    scenario.output = sdk.output
    return scenario.application(
        lambda app: FastAPIInstrumentor.instrument_app(
            app, tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider
        )
    )


def opentelemetry_global(scenario: Scenario) -> FastAPI:
    import fastapi
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    sdk = _Sdk()
    scenario.output = sdk.output
    FastAPIInstrumentor().instrument(tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider)
    globals()["FastAPI"] = fastapi.FastAPI
    return scenario.application()


def opentelemetry_hooks(scenario: Scenario) -> FastAPI:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    sdk = _Sdk()
    scenario.output = sdk.output

    def request_hook(span: Any, scope: Any) -> None:
        scenario.log("request hook", scope["path"])

    def receive_hook(span: Any, scope: Any, message: Any) -> None:
        scenario.log("receive hook", message["type"], scope.get("route"), scope.get("endpoint"))

    def send_hook(span: Any, scope: Any, message: Any) -> None:
        scenario.log("send hook", message["type"], scope.get("route"), scope.get("path_params"))

    return scenario.application(
        lambda app: FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=sdk.tracer_provider,
            meter_provider=sdk.meter_provider,
            server_request_hook=request_hook,
            client_request_hook=receive_hook,
            client_response_hook=send_hook,
            http_capture_headers_server_request=[".*"],
            http_capture_headers_server_response=[".*"],
        )
    )


def native_telemetry(scenario: Scenario) -> FastAPI:
    sdk = _Sdk()
    scenario.output = sdk.output
    return scenario.application(
        telemetry={
            "tracer_provider": sdk.tracer_provider,
            "meter_provider": sdk.meter_provider,
            "logger_provider": sdk.logger_provider,
        }
    )


def native_telemetry_data(scenario: Scenario) -> FastAPI:
    """FastAPI's own telemetry with processors that read the request's data, as integrations do."""
    from fastapi.telemetry import get_telemetry_data
    from opentelemetry.sdk.trace import SpanProcessor

    sdk = _Sdk()
    scenario.output = sdk.output

    class ReadData(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            self._note("start", span)

        def on_end(self, span: Any) -> None:
            self._note("end", span)

        def _note(self, what: str, span: Any) -> None:
            data = get_telemetry_data()
            if data is None:
                scenario.log(what, span.name, None)
                return
            values = {name: value for name, value in (data.values or {}).items() if not isinstance(value, Request)}
            scenario.log(what, span.name, data.body, values, list(data.values or ()), data.errors, data.request is None)

    sdk.tracer_provider.add_span_processor(ReadData())
    return scenario.application(telemetry={"tracer_provider": sdk.tracer_provider, "metrics": False, "logs": False})


def prometheus(scenario: Scenario) -> FastAPI:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_fastapi_instrumentator import Instrumentator

    registry = CollectorRegistry()

    def output() -> list[Any]:
        lines = generate_latest(registry).decode().splitlines()
        return [line for line in lines if not re.search(r"_created|_bucket|_seconds_sum", line)]

    scenario.output = output
    return scenario.application(lambda app: Instrumentator(registry=registry).instrument(app).expose(app) and None)


def _slowapi(scenario: Scenario, middleware: Any) -> FastAPI:
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded
    from slowapi.util import get_remote_address

    limiter = Limiter(
        key_func=get_remote_address, default_limits=["1/hour"] if middleware else [], headers_enabled=True
    )
    limited = limiter.limit("2/hour")

    def instrument(app: FastAPI) -> None:
        app.state.limiter = limiter
        app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
        if middleware is not None:
            app.add_middleware(middleware)

        @app.get("/limited")
        @limited
        async def limited_operation(request: Request, response: Response) -> str:
            return "limited"

        @app.get("/limited-sync")
        @limited
        def limited_sync(request: Request, response: Response) -> str:
            return "limited"

    scenario.calls += [get(target) for target in ("/limited", "/limited-sync", "/items/1") for _ in range(3)]
    scenario.output = lambda: [repr(scenario.log).count("('status', 429)")]
    return scenario.application(instrument)


def slowapi_decorator(scenario: Scenario) -> FastAPI:
    return _slowapi(scenario, None)


def slowapi_middleware(scenario: Scenario) -> FastAPI:
    from slowapi.middleware import SlowAPIMiddleware

    return _slowapi(scenario, SlowAPIMiddleware)


def slowapi_asgi_middleware(scenario: Scenario) -> FastAPI:
    from slowapi.middleware import SlowAPIASGIMiddleware

    return _slowapi(scenario, SlowAPIASGIMiddleware)


def _logfire(scenario: Scenario, *, extra_spans: bool) -> FastAPI:
    import logfire
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    logfire.configure(
        send_to_logfire=False,
        console=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
        inspect_arguments=False,
    )

    def mapper(request: Any, attributes: dict[str, Any]) -> dict[str, Any]:
        scenario.log("mapper", request.url.path, sorted(attributes["values"]), attributes["errors"])
        return {"values": attributes["values"], "errors": len(attributes["errors"])}

    scenario.output = lambda: describe_spans(exporter.get_finished_spans())
    return scenario.application(
        lambda app: logfire.instrument_fastapi(app, extra_spans=extra_spans, request_attributes_mapper=mapper) and None
    )


def logfire(scenario: Scenario) -> FastAPI:
    return _logfire(scenario, extra_spans=False)


def logfire_extra_spans(scenario: Scenario) -> FastAPI:
    return _logfire(scenario, extra_spans=True)


def wrapt_handle(scenario: Scenario) -> FastAPI:
    """Wrap methods of FastAPI's routes before fast routes are imported, as ddtrace does."""
    return _wrapped(scenario, "APIRoute.handle")


def wrapt_serialize_response(scenario: Scenario) -> FastAPI:
    """Wrap a function of FastAPI before fast routes are imported, as ddtrace does."""
    return _wrapped(scenario, "serialize_response")


def _wrapped(scenario: Scenario, name: str) -> FastAPI:
    import wrapt

    reported: list[Any] = []

    def wrapper(wrapped: Any, instance: Any, args: Any, options: Any) -> Any:
        reported.append((name, type(instance).__name__, sorted(options)))
        return wrapped(*args, **options)

    wrapt.wrap_function_wrapper("fastapi.routing", name, wrapper)
    scenario.output = lambda: reported
    return scenario.application()


def main() -> None:
    """Run one scenario and print what was recorded."""
    name, when = sys.argv[1:]
    scenario = Scenario(when)
    app = globals()[name](scenario)
    recorded = asyncio.run(scenario.run(app))
    print(json.dumps(recorded))


if __name__ == "__main__":
    main()
