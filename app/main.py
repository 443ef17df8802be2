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
from app.domains.auth.service import Authenticator, SignIn, SignInLimits
from app.domains.auth.tokens import Tokens
from app.errors import InvalidInput
from app.list_limits import ListLimits
from app.observability import multiprocess
from app.observability.http_metrics import HttpMetrics
from app.observability.logging import request_scope
from app.observability.pool_metrics import PoolMetrics
from app.observability.process_metrics import ProcessMetrics
from app.observability.request_log import RequestLog
from app.pagination.cursor import Cursors
from app.settings import Settings, load_settings
from app.web import fast_routes, health, leak_detection
from app.web.middleware import BodyLimitMiddleware, ErrorMiddleware, HeadMiddleware, RequestMiddleware
from app.web.mounted import install_in_mounted
from app.web.operation import route_template
from app.web.pagination import document_limits
from app.web.problems import DATABASE_ERRORS, document_problems, install_problem_handlers, problem_responses
from app.web.route_checks import check_routes

# Time limit for closing the pool at shutdown: a hung server does not respond. The exit of the process closes the rest.
DISPOSE_SECONDS = 1.0

# FastAPI looks up OpenTelemetry's providers in each request: 5 % of its CPU time. Without the SDK there are none.
HAS_TRACER = find_spec("opentelemetry.sdk") is not None
TELEMETRY: TelemetryConfig = {} if HAS_TRACER else {"tracing": False, "metrics": False, "logs": False}


def provide_state(app: FastAPI, database: Database, settings: Settings) -> None:
    """Set the objects that dependencies read from `app.state`. Raise ConfigurationError without a SECRET_KEY."""
    key, fallbacks = settings.require_secret_key(), settings.secret_key_fallbacks
    tokens = Tokens(key, settings.access_token_seconds, fallbacks)
    limits = SignInLimits(
        per_account=settings.sign_in_account_limit,
        per_address=settings.sign_in_address_limit,
        window_seconds=settings.sign_in_window,
    )
    app.state.database = database
    app.state.sign_in = SignIn(database, tokens, limits)
    app.state.authenticator = Authenticator(database, tokens)
    app.state.cursors = Cursors(key, fallbacks, _list_limits(settings))


def _list_limits(settings: Settings) -> ListLimits:
    return ListLimits(settings.list_max_offset, settings.list_max_count)


def _new_pool_metrics() -> PoolMetrics:
    if not HAS_TRACER:
        return PoolMetrics("api")
    from app.observability.span_events import TracedPoolMetrics  # the SDK requires what it imports

    return TracedPoolMetrics("api")


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
    settings.require_secret_key()
    budget = from_settings(settings).budget
    http_metrics = HttpMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        check_routes(app)
        fast_routes.log_report(app)
        pool_metrics = _new_pool_metrics()
        process_metrics = ProcessMetrics(app.version)
        engine = make_engine(
            url=database_url,
            application_name=f"headroom:api:{settings.api_replica}:{multiprocess.current_slot()}",
            pool=PoolOptions(
                one_per_task=True,
                expensive_share=budget.lanes.expensive,
                own_lanes=budget.api.own_lanes,
                **settings.pool_options(),
            ),
            observer=pool_metrics,
        )

        def publish() -> None:
            if state := pool_state(engine):
                pool_metrics.publish(state)
                pool_metrics.publish_lanes(*lane_states(engine))
            http_metrics.publish()
            process_metrics.publish()
            leak_detection.report(engine, settings.db_pool_leak_after)

        database = Database(engine)
        if settings.db_statement_comments:
            comment_statements(database, _current_route, settings.db_statement_comments)
        provide_state(app, database, settings)
        await warm_up(engine)
        try:
            with multiprocess.Heartbeat(publish):
                yield
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(DISPOSE_SECONDS):
                    await engine.dispose()

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
    if settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Request-Timeout", "X-Request-ID"],
            expose_headers=["Location", "Retry-After", "X-Request-ID"],
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
