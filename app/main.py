"""The API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.telemetry import TelemetryConfig

from app import health, registry
from app.database import Database, make_engine, warm_up
from app.database.pool import pool_state
from app.domains.auth.service import Authenticator, SignIn, SignInLimits
from app.domains.auth.tokens import Tokens
from app.errors import InvalidInput
from app.observability import replica
from app.observability.http_metrics import HttpMetrics
from app.observability.pool_metrics import PoolMetrics
from app.observability.process_metrics import ProcessMetrics
from app.settings import Settings, load_settings
from app.web import leaks
from app.web.compiled import CompiledRoutes
from app.web.deps import refuse_commit_after_answer
from app.web.middleware import BodyLimitMiddleware, ErrorMiddleware, RequestMiddleware
from app.web.pagination import Cursors
from app.web.problems import DATABASE_ERRORS, document_problems, install_problem_handlers, problem_responses

DISPOSE_SECONDS = 1.0

# FastAPI's own OpenTelemetry asks for its providers once a request, 5 % of what a request takes; there can be none
# where the SDK is not installed.
TELEMETRY: TelemetryConfig = (
    {} if find_spec("opentelemetry.sdk") else {"tracing": False, "metrics": False, "logs": False}
)


def introduce(app: FastAPI, database: Database, settings: Settings) -> None:
    """Give the application what its routes find in `app.state`."""
    tokens = Tokens(settings.require_secret_key(), settings.access_token_seconds)
    limits = SignInLimits(
        per_account=settings.sign_in_account_limit,
        per_address=settings.sign_in_address_limit,
        window_seconds=settings.sign_in_window,
    )
    app.state.database = database
    app.state.sign_in = SignIn(database, tokens, limits)
    app.state.authenticator = Authenticator(database, tokens)
    app.state.cursors = Cursors(settings.require_secret_key())


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Opens nothing: its lifespan does, so Gunicorn may create it before it forks.

    Raises ConfigurationError.
    """
    settings = settings or load_settings()
    database_url = settings.require_database_url()
    settings.require_secret_key()
    http_metrics = HttpMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        refuse_commit_after_answer(app)
        pool_metrics = PoolMetrics("api")
        process_metrics = ProcessMetrics(app.version)
        engine = make_engine(
            url=database_url,
            application_name=f"headroom:api:{settings.api_replica}:{replica.current_worker()}",
            pool_size=settings.db_pool_size,
            max_overflow=settings.db_max_overflow,
            pool_timeout=settings.db_pool_timeout,
            pool_max_waiters=settings.db_pool_max_waiters,
            pool_recycle=settings.db_pool_recycle,
            pool_ping_after=settings.db_pool_ping_after if settings.db_pool_pre_ping else None,
            pool_shrink_after=settings.db_pool_shrink_after,
            one_per_task=True,
            meter=pool_metrics,
        )

        def publish() -> None:
            if state := pool_state(engine):
                pool_metrics.publish(state)
            http_metrics.publish()
            process_metrics.publish()
            leaks.report(engine, settings.db_pool_leak_after)

        introduce(app, Database(engine), settings)
        await warm_up(engine)
        try:
            with replica.Heartbeat(publish):
                yield
        finally:
            # A server that hangs does not say goodbye; ending the process closes what is left.
            with suppress(TimeoutError):
                async with asyncio.timeout(DISPOSE_SECONDS):
                    await engine.dispose()

    app = FastAPI(
        title="Headroom",
        version=version("headroom"),
        lifespan=lifespan,
        telemetry=TELEMETRY,
        redoc_url=None,
        redirect_slashes=False,  # to a host that the caller names
    )
    # Each is put around those before it: a request passes through them from the last to the first.
    app.add_middleware(CompiledRoutes, application=app)
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(ErrorMiddleware)
    if settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Location", "Retry-After", "X-Request-ID"],
        )
    app.add_middleware(RequestMiddleware, metrics=http_metrics)
    install_problem_handlers(app)
    app.include_router(health.router)
    every_route = problem_responses(InvalidInput, *DATABASE_ERRORS)
    for router in registry.routers:
        app.include_router(router, responses=every_route)
    document_problems(app)
    return app
