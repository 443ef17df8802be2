"""The API. `create_app()` composes settings, database, routes and middleware."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.telemetry import TelemetryConfig

from app import registry
from app.budget.sources import from_settings
from app.database import Database, PoolOptions, make_engine, warm_up
from app.database.comments import comment_statements
from app.database.pool import lane_states, pool_state
from app.database.standby import ReplicatedDatabase, Standby, read_pool_options
from app.errors import InvalidInput
from app.list_limits import ListLimits
from app.observability import multiprocess
from app.observability.catalogue import PRIMARY_POOL, READ_POOL
from app.observability.http_metrics import HttpMetrics
from app.observability.pool_metrics import PoolMetrics
from app.observability.process_metrics import ProcessMetrics
from app.observability.read_metrics import ReadMetrics
from app.observability.request_log import RequestLog
from app.pagination.cursor import Cursors
from app.request_context import request_scope
from app.settings import Settings, load_settings
from app.web import fast_routes, health, leak_detection
from app.web.middleware import BodyLimitMiddleware, ErrorMiddleware, HeadMiddleware, RequestMiddleware
from app.web.mounted import install_in_mounted
from app.web.operation import route_template
from app.web.pagination import document_limits
from app.web.problems import DATABASE_ERRORS, document_problems, install_problem_handlers, problem_responses
from app.web.read_after import HEADER as READ_AFTER
from app.web.read_after import ReadAfterMiddleware, ReadAfterTokens
from app.web.route_checks import check_routes

# Time limit for closing the pool at shutdown: a hung server does not respond. The exit of the process closes the rest.
DISPOSE_SECONDS = 1.0

# FastAPI looks up OpenTelemetry's providers in each request: 5 % of its CPU time. Without the SDK there are none.
HAS_TRACER = find_spec("opentelemetry.sdk") is not None
TELEMETRY: TelemetryConfig = {} if HAS_TRACER else {"tracing": False, "metrics": False, "logs": False}


def provide_state(app: FastAPI, database: Database, settings: Settings) -> None:
    """Set the objects that dependencies read from `app.state`. Raise ConfigurationError without a SECRET_KEY."""
    key, fallbacks = settings.require_secret_key(), settings.secret_key_fallbacks
    app.state.database = database
    app.state.cursors = Cursors(key, fallbacks, _list_limits(settings))
    for provide in registry.providers:
        provide(app.state, database, settings)


def _list_limits(settings: Settings) -> ListLimits:
    return ListLimits(settings.list_max_offset, settings.list_max_count)


def _new_pool_metrics(pool: str) -> PoolMetrics:
    if not HAS_TRACER:
        return PoolMetrics(pool)
    from app.observability.span_events import TracedPoolMetrics  # the SDK requires what it imports

    return TracedPoolMetrics(pool)


def _current_route() -> str:
    """Return the route of the request in progress; empty outside a request."""
    scope = request_scope.get()
    return route_template(scope) if scope else ""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application. Raise ConfigurationError.

    Only its lifespan opens connections, so Gunicorn can create the application before it forks.
    """
    settings = settings or load_settings()
    database_url = settings.require_database_url()
    read_url = settings.known_database_read_url()
    settings.require_secret_key()
    budget = from_settings(settings).budget
    http_metrics = HttpMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        check_routes(app)
        fast_routes.log_report(app)
        process_metrics = ProcessMetrics(app.version)
        application_name = f"headroom:api:{settings.api_replica}:{multiprocess.current_slot()}"
        pool = PoolOptions(
            one_per_task=True,
            expensive_share=budget.lanes.expensive,
            own_lanes=budget.api.own_lanes,
            **settings.pool_options(),
        )
        pools = {PRIMARY_POOL: _new_pool_metrics(PRIMARY_POOL)}
        engine = make_engine(
            url=database_url, application_name=application_name, pool=pool, observer=pools[PRIMARY_POOL]
        )
        engines = {PRIMARY_POOL: engine}
        database = Database(engine)
        standby: Standby | None = None
        if read_url is not None:
            pools[READ_POOL], read_metrics = _new_pool_metrics(READ_POOL), ReadMetrics(settings.db_read_max_lag)
            replicated = ReplicatedDatabase(
                engine,
                url=read_url,
                application_name=application_name,
                pool=read_pool_options(pool, settings.db_read_pool_size),
                max_lag=settings.db_read_max_lag,
                observer=pools[READ_POOL],
                routed=read_metrics.routed,
            )
            database, standby = replicated, replicated.standby
            engines[READ_POOL] = standby.engine

        def publish() -> None:
            for name, metrics in pools.items():
                if state := pool_state(engines[name]):
                    metrics.publish(state)
                    metrics.publish_lanes(*lane_states(engines[name]))
                leak_detection.report(engines[name], settings.db_pool_leak_after)
            if standby is not None:
                read_metrics.publish(standby.lag, is_up=standby.is_up)
            http_metrics.publish()
            process_metrics.publish()

        if settings.db_statement_comments:
            comment_statements(database, _current_route, settings.db_statement_comments)
        provide_state(app, database, settings)
        await warm_up(engine)
        watching = None if standby is None else asyncio.create_task(standby.watch(), name="watch of the standby")
        try:
            with multiprocess.Heartbeat(publish):
                yield
        finally:
            if watching is not None:
                watching.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(DISPOSE_SECONDS):
                    for each in engines.values():
                        await each.dispose()

    app = FastAPI(
        title="Headroom",
        version=version("headroom"),
        lifespan=lifespan,
        telemetry=TELEMETRY,
        docs_url="/docs" if settings.api_docs == "on" else None,
        openapi_url="/openapi.json" if settings.api_docs == "on" else None,
        redoc_url=None,
        redirect_slashes=False,  # the redirect would go to the host that the client sent
    )
    # Each middleware wraps the ones added before it: a request passes through them from last to first.
    app.add_middleware(HeadMiddleware)
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(ErrorMiddleware)
    if read_url is not None:
        tokens = ReadAfterTokens(settings.require_secret_key(), settings.secret_key_fallbacks)
        app.add_middleware(ReadAfterMiddleware, tokens=tokens, root_path=settings.root_path)
    if settings.cors_allow_origins:
        read_after = [] if read_url is None else [READ_AFTER]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Request-Timeout", "X-Request-ID", *read_after],
            expose_headers=["Location", "Retry-After", "X-Request-ID", *read_after],
        )
    app.add_middleware(
        RequestMiddleware,
        metrics=http_metrics,
        log=RequestLog(settings.log_every),
        root_path=settings.root_path,
    )
    install_problem_handlers(app)
    install_in_mounted(app)
    app.include_router(health.router)
    every_route = problem_responses(InvalidInput, *DATABASE_ERRORS)
    for router in registry.routers:
        app.include_router(router, responses=every_route)
    document_problems(app, settings.root_path)
    document_limits(app, _list_limits(settings))
    fast_routes.install(app, settings.fast_routes)
    return app
