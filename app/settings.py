"""The environment variables of Headroom, in one class.

A field is read from the variable of the same name in upper case, then from `.env` in the working directory. A secret
can also be read from a file: `DATABASE_URL_FILE` contains its path. An empty variable counts as not set. Programs call
`load_settings()`, which raises one ConfigurationError that names every invalid variable.
"""

import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from io import StringIO
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv.parser import parse_stream
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import URL, make_url

from app.database_url import parse_database_url
from app.errors import ConfigurationError
from app.list_limits import ListLimits
from app.pool_options import PING_AFTER, PoolOptions


def _database_url(value: object) -> URL:
    return parse_database_url(value if isinstance(value, URL) else str(value))


DatabaseURL = Annotated[URL, PlainValidator(_database_url)]
CommaSeparated = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(lambda value: value.replace(",", " ").split() if isinstance(value, str) else value),
]


def _proxies(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses and networks as text. Uvicorn would ignore what is neither, without a message."""
    for value in values:
        try:
            if value != "*":
                ip_network(value)
        except ValueError as error:
            raise ValueError(f"{error}; addresses and networks such as 10.0.0.0/8 are allowed") from None
    return values


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return origins as browsers send them: in lower case, without a slash at the end and without a default port."""
    return tuple(_origin(value) for value in values)


def _origin(value: str) -> str:
    if value == "*":
        return value
    hint = "an origin is a scheme, a host and perhaps a port, such as https://app.example.com"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError as error:
        raise ValueError(f"{value!r} is no origin: {error}; {hint}") from None
    if "*" in host:
        raise ValueError(f"{value!r} has a wildcard; list each origin, or use * alone for all")
    if not parts.scheme or not host or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{value!r} is no origin; {hint}")
    shown = f"[{host}]" if ":" in host else host
    is_default = port in (None, {"http": 80, "https": 443}.get(parts.scheme))
    return f"{parts.scheme}://{shown}" + ("" if is_default else f":{port}")


def _path_prefix(value: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", value):
        raise ValueError("must be a path such as /api")
    return value.rstrip("/")


def _listening_address(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", value):
        raise ValueError("must be an IPv4 address or a host name, without a scheme and a port, such as 0.0.0.0")
    return value


def _keys(values: tuple[str, ...]) -> tuple[str, ...]:
    if any(len(value) < MIN_KEY_LENGTH for value in values):
        raise ValueError(f"each key must have at least {MIN_KEY_LENGTH} characters")
    return values


Proxies = Annotated[CommaSeparated, AfterValidator(_proxies)]
Keys = Annotated[CommaSeparated, AfterValidator(_keys)]
Origins = Annotated[CommaSeparated, AfterValidator(_origins)]
PathPrefix = Annotated[str, AfterValidator(_path_prefix)]
ListeningAddress = Annotated[str, AfterValidator(_listening_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
MIN_KEY_LENGTH = 32
YEAR = 31_536_000
# PostgreSQL's limit for its time limits, in seconds.
MAX_SERVER_TIMEOUT = 2_147_483
# A variable this similar to a setting is a misspelled one. At 0.9, DATABASE_USER is not one of DATABASE_URL.
MISSPELLED = 0.9
# What Kubernetes puts into a pod's API_PORT if there is a Service `api`.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
# The other names of such links: too many to compare each, in a large cluster.
_NAME_OF_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP|SCTP)")

# Marks a field that NAME_FILE can set too. Its value is never shown.
SECRET: JsonDict = {"secret": True}


def _sets_option(name: str) -> JsonDict:
    """Mark a field that sets the field `name` of `PoolOptions`."""
    return {"pool_option": name}


def _option_set_by(field: FieldInfo) -> str | None:
    extra = field.json_schema_extra
    return str(extra["pool_option"]) if isinstance(extra, dict) and "pool_option" in extra else None


class Settings(BaseSettings):
    """The settings of every Headroom program. Frozen after they are read.

    The fields are in the order of the generated table (`headroom settings`), which shows their descriptions.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file=".env",
        env_file_encoding="utf-8-sig",  # editors on Windows put a mark before the first name
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    # Database.
    database_url: DatabaseURL | None = Field(
        default=None,
        description="URL of the database. Without a driver, asyncpg is used. Default: the PostgreSQL of `make run`, if "
        "it is running.",
        json_schema_extra=SECRET,
    )
    database_read_url: DatabaseURL | None = Field(
        default=None,
        description="URL of a standby, for the reads of read sessions (docs/read-replicas.md). Default: they go to "
        "`DATABASE_URL`.",
        json_schema_extra=SECRET,
    )
    db_read_max_lag: float = Field(
        default=10.0,
        ge=1,
        le=60,
        description="Seconds that the standby of `DATABASE_READ_URL` may be behind. Beyond, it gets no reads.",
    )
    db_pooler: Literal["none", "pgbouncer"] = Field(
        default="none", description="What `DATABASE_URL` connects to: `none` (PostgreSQL itself) or `pgbouncer`."
    )
    startup_timeout: float = Field(
        default=0.0,
        ge=0,
        description="Seconds that the API and the migration job wait for the database at startup. The API also waits "
        "for its schema.",
    )
    data_dir: Path = Field(default=Path(".data"), description="Directory in which `make run` keeps its PostgreSQL.")

    # Migrations.
    migration_database_url: DatabaseURL | None = Field(
        default=None,
        description="URL that migrations connect to: PostgreSQL itself, never a pooler. Default: `DATABASE_URL`.",
        json_schema_extra=SECRET,
    )
    migration_lock_timeout: float = Field(
        default=300.0, ge=0, description="Seconds that a migration job waits for another one to finish."
    )
    migration_ddl_lock_timeout: float = Field(
        default=1.0,
        gt=0,
        le=MAX_SERVER_TIMEOUT,
        description="Seconds that a statement of a migration waits for a lock. Other statements on the table queue "
        "behind it meanwhile. Then the revision is rolled back and tried again.",
    )
    migration_retry_timeout: float = Field(
        default=120.0,
        ge=0,
        description="Seconds in which a migration job tries again after it did not get a lock.",
    )
    migration_revision_timeout: float = Field(
        default=600.0,
        ge=0,
        le=MAX_SERVER_TIMEOUT,
        description="Seconds after which the server cancels a statement of a migration, and since PostgreSQL 17 the "
        "transaction of a revision; 0 means never. Concurrent index builds have no limit.",
    )
    backfill_max_lag: float = Field(
        default=10.0,
        ge=0,
        description="Seconds that a standby may be behind before a back-fill pauses; 0 turns that off.",
    )

    # Authentication.
    secret_key: str | None = Field(
        default=None,
        min_length=MIN_KEY_LENGTH,
        description="Key that signs access tokens and cursors, at least 32 characters (`openssl rand -hex 32`).",
        json_schema_extra=SECRET,
        repr=False,
    )
    secret_key_fallbacks: Keys = Field(
        default=(),
        description="Further keys whose access tokens and cursors are accepted, separated by commas: the keys of the "
        "past, and during a rotation the next one. Default: none.",
        json_schema_extra=SECRET,
        repr=False,
    )
    access_token_seconds: int = Field(
        default=1800, ge=1, le=YEAR, description="Lifetime of an access token, in seconds."
    )
    sign_in_account_limit: int = Field(
        default=10,
        ge=1,
        description="Failed sign-ins per account within `SIGN_IN_WINDOW`. Further sign-ins get 429.",
    )
    sign_in_address_limit: int = Field(
        default=100,
        ge=1,
        description="Failed sign-ins per client address within `SIGN_IN_WINDOW`. Further sign-ins get 429.",
    )
    sign_in_window: int = Field(
        default=900, ge=1, le=YEAR, description="Seconds after which the count of failed sign-ins is reset."
    )

    # HTTP.
    api_host: ListeningAddress = Field(default="127.0.0.1", description="IPv4 address on which the API listens.")
    api_port: Port = Field(default=8000, description="Port on which the API listens.")
    root_path: PathPrefix = Field(
        default="",
        description="Path under which a proxy publishes the API, such as `/api`. The proxy removes it or passes it on. "
        "`/docs`, the address of sign-in and `Location` headers contain it. Default: none.",
    )
    cors_allow_origins: Origins = Field(
        default=(),
        description="Origins whose web pages may call the API, separated by commas. Default: none.",
    )
    forwarded_allow_ips: Proxies = Field(
        default=(),
        description="Proxies whose `X-Forwarded-*` headers are trusted: addresses, networks such as `10.0.0.0/8`, or "
        "`*` for all, separated by commas. Default: none.",
    )
    api_docs: Literal["on", "off"] = Field(
        default="on",
        description="Serve `/docs` and `/openapi.json` (`on`), or answer 404 there (`off`).",
    )
    list_max_offset: int = Field(
        default=ListLimits().max_offset,
        ge=0,
        description="Largest `offset` of a list. Beyond it, a request gets 422 and is told to page by `cursor`.",
    )
    list_max_count: int = Field(
        default=ListLimits().max_count,
        ge=0,
        description="Items that a list counts, at most. A longer list has `total_at_least` instead of `total`, and "
        "refuses a search for text without three letters or digits in a row.",
    )
    max_body_bytes: int = Field(default=1_048_576, ge=1, description="Maximum size of a request body, in bytes.")
    max_header_bytes: int = Field(
        default=32_768,
        ge=1024,
        description="Maximum size of a request's line and headers, in bytes. Larger ones get 431.",
    )
    max_headers: int = Field(
        default=100, ge=1, description="Maximum number of headers of a request. More of them get 431."
    )
    keep_alive_timeout: int = Field(
        default=65,
        ge=1,
        description="Seconds after which an idle connection is closed. Must be longer than the load balancer's own "
        "time, often 60 s, or it may use a connection that is being closed.",
    )
    header_timeout: float = Field(
        default=10.0, gt=0, description="Seconds in which the headers of a request must arrive, or it gets 408."
    )
    body_timeout: float = Field(
        default=20.0,
        gt=0,
        description="Seconds in which a request body must arrive, or it gets 408. A body that comes faster than 1 KiB "
        "per second over this time may go on.",
    )
    send_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds after which a client is disconnected that reads its response slower than 1 KiB per "
        "second.",
    )
    fast_routes: Literal["auto", "off"] = Field(
        default="auto",
        description="Prepare FastAPI's operations once instead of for each request (`auto`), or leave them to FastAPI "
        "(`off`).",
    )

    # Connection budget.
    db_budget: Literal["enforce", "warn", "off"] = Field(
        default="enforce",
        description="What happens if the connection budget is exceeded: the API and the migration job do not start "
        "(`enforce`), they log a warning (`warn`), or there is no check (`off`).",
    )
    api_replicas: int = Field(default=1, ge=1, description="Number of API replicas, on all machines together.")
    api_surge: int = Field(default=0, ge=0, description="Number of additional replicas during a rolling deploy.")
    web_concurrency: int = Field(default=4, ge=1, description="Number of worker processes per replica.")
    postgres_max_connections: int | None = Field(
        default=None,
        ge=1,
        description="Our share of the server's `max_connections`, if other programs use the server too. If the server "
        "cannot be queried: its `max_connections`, by default 100.",
    )
    postgres_superuser_reserved_connections: int | None = Field(
        default=None,
        ge=0,
        description="The server's `superuser_reserved_connections`, if it cannot be queried. Default: 3.",
    )
    postgres_reserved_connections: int | None = Field(
        default=None,
        ge=0,
        description="The server's `reserved_connections`, if it cannot be queried. Default: 0.",
    )
    postgres_cores: int | None = Field(
        default=None,
        ge=1,
        description="CPU cores of the server. If set, the budget warns about more connections than they can use, and "
        "the expensive lane gets a share of them.",
    )
    pgbouncer_max_client_conn: int | None = Field(
        default=None, ge=1, description="PgBouncer's `max_client_conn`, if its console cannot be queried. Default: 100."
    )
    pgbouncer_default_pool_size: int | None = Field(
        default=None,
        ge=1,
        description="PgBouncer's `default_pool_size`, if its console cannot be queried. Default: 20.",
    )
    pgbouncer_reserve_pool_size: int | None = Field(
        default=None, ge=0, description="PgBouncer's `reserve_pool_size`, if its console cannot be queried. Default: 0."
    )
    pgbouncer_max_db_connections: int | None = Field(
        default=None,
        ge=0,
        description="PgBouncer's `max_db_connections`, if its console cannot be queried. Default: 0 (no limit).",
    )
    pgbouncer_instances: int = Field(
        default=1,
        ge=1,
        description="Number of PgBouncer processes, with those that a deploy adds. Each has these limits, and may get "
        "every client.",
    )
    pgbouncer_console: Literal["on", "off"] = Field(
        default="on",
        description="Whether PgBouncer's console can be queried. `off` for CloudNativePG's Pooler: its limits are read "
        "from the settings, and the exporter has no metrics of PgBouncer.",
    )

    # Connection pool, per worker. A new pool setting is a field here and the field of PoolOptions that it sets.
    db_pool_size: int = Field(
        default=PoolOptions.size,
        ge=1,
        description="Connections that a worker keeps open.",
        json_schema_extra=_sets_option("size"),
    )
    db_max_overflow: int = Field(
        default=PoolOptions.max_overflow,
        ge=0,
        description="Connections that a worker may open beyond `DB_POOL_SIZE` under load.",
        json_schema_extra=_sets_option("max_overflow"),
    )
    db_read_pool_size: int = Field(
        default=5,
        ge=1,
        description="Connections that a worker may open to the standby of `DATABASE_READ_URL`.",
    )
    db_pool_timeout: float = Field(
        default=PoolOptions.timeout,
        gt=0,
        description="Seconds in which a request must get a connection, including queue, ping and connect. Then 503.",
        json_schema_extra=_sets_option("timeout"),
    )
    db_statement_deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds without an answer to a statement after which its connection is closed. Then 503. "
        "Default: the server's `statement_timeout` and 2 s.",
        json_schema_extra=_sets_option("statement_deadline"),
    )
    db_pool_max_waiters: int = Field(
        default=PoolOptions.max_waiters,
        ge=0,
        description="Requests per worker that may wait for a connection. Further requests get 503 at once.",
        json_schema_extra=_sets_option("max_waiters"),
    )
    db_queue_target: float = Field(
        default=PoolOptions.queue_target,
        gt=0,
        description="Longest acceptable wait for a connection, in seconds. If all requests of one `DB_QUEUE_INTERVAL` "
        "wait longer, the queue is overloaded: requests that have waited twice as long get 503 (CoDel).",
        json_schema_extra=_sets_option("queue_target"),
    )
    db_queue_interval: float = Field(
        default=PoolOptions.queue_interval,
        gt=0,
        description="Seconds after which a queue that stays above `DB_QUEUE_TARGET` is overloaded.",
        json_schema_extra=_sets_option("queue_interval"),
    )
    db_expensive_share: float | None = Field(
        default=None,
        gt=0,
        description="Connections that a worker uses at a time for expensive statements; less than 1 is a share of the "
        "time. Default: all cores of the server but one, divided by the workers; 1 if `POSTGRES_CORES` is not set.",
    )
    db_expensive_max_waiters: int = Field(
        default=PoolOptions.expensive_max_waiters,
        ge=0,
        description="Expensive statements per worker that may wait. Further ones get 503 at once.",
        json_schema_extra=_sets_option("expensive_max_waiters"),
    )
    db_expensive_timeout: float = Field(
        default=PoolOptions.expensive_timeout,
        gt=0,
        description="Seconds in which an expensive statement must get a connection, or it gets 503.",
        json_schema_extra=_sets_option("expensive_timeout"),
    )
    db_expensive_after: float = Field(
        default=PoolOptions.expensive_after,
        ge=0,
        description="Seconds that a read takes before it may be moved to the expensive lane, if it takes a multiple of "
        "all other statements and the server is busy; 4 times as many while limited lanes are used. 0: none is moved.",
        json_schema_extra=_sets_option("expensive_after"),
    )
    db_pool_recycle: int = Field(
        default=PoolOptions.recycle,
        ge=1,
        description="Age in seconds at which a connection is replaced, at the latest.",
        json_schema_extra=_sets_option("recycle"),
    )
    db_pool_pre_ping: bool = Field(
        default=True, description="Ping a connection before a checkout if it was idle for `DB_POOL_PING_AFTER`."
    )
    db_pool_ping_after: float = Field(
        default=PING_AFTER,
        ge=0,
        description="Idle time in seconds after which a connection is pinged before a checkout.",
        json_schema_extra=_sets_option("ping_after"),
    )
    db_pool_shrink_after: float = Field(
        default=PoolOptions.shrink_after,
        ge=0,
        description="Idle time in seconds after which a connection beyond `DB_POOL_SIZE` is closed.",
        json_schema_extra=_sets_option("shrink_after"),
    )
    db_coalesce_max: int = Field(
        default=PoolOptions.coalesce_max,
        ge=1,
        description="Waiting reads by key that one statement answers, at most, or waiting rows that one inserts. "
        "1: nothing shares a statement.",
        json_schema_extra=_sets_option("coalesce_max"),
    )
    db_coalesce_in_flight: int = Field(
        default=PoolOptions.coalesce_in_flight,
        ge=1,
        description="Statements of one kind that a worker has under way before further reads or rows of that kind wait "
        "for each other.",
        json_schema_extra=_sets_option("coalesce_in_flight"),
    )
    db_statement_comments: int = Field(
        default=0,
        ge=0,
        description="Texts of statements per worker that may carry a comment with route and lane (sqlcommenter), at "
        "most. 0: none.",
    )
    db_pool_leak_after: float = Field(
        default=30.0,
        gt=0,
        description="Seconds after which a checked-out connection is logged and counted as a suspected leak.",
    )

    # API server.
    api_replica: str = Field(
        default_factory=socket.gethostname,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Name of this replica in metrics and in `pg_stat_activity`. Default: the host name.",
    )
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Seconds that a replica goes on serving after it was told to stop, while `/readyz` answers 503 so "
        "that load balancers stop using it.",
    )
    graceful_timeout: int = Field(
        default=8, ge=2, description="Seconds that a stopping worker may spend on requests that it has accepted."
    )
    worker_timeout: int = Field(
        default=10, ge=3, description="Seconds after which a worker is replaced whose event loop is stuck."
    )
    max_requests: int = Field(
        default=0,
        ge=0,
        description="Approximate number of requests after which a worker is replaced, one at a time; 0 means never.",
    )

    # Exporter.
    exporter_host: ListeningAddress = Field(
        default="127.0.0.1", description="IPv4 address on which the exporter listens."
    )
    exporter_port: Port = Field(default=9464, description="Port on which the exporter listens.")
    exporter_database_url: DatabaseURL | None = Field(
        default=None,
        description="URL at which the exporter queries PostgreSQL itself, as a role with `pg_monitor`. Default: the "
        "PostgreSQL of `make run`, or `DATABASE_URL`.",
        json_schema_extra=SECRET,
    )
    pgbouncer_admin_url: DatabaseURL | None = Field(
        default=None,
        description="URL of PgBouncer's console, for the exporter as one of PgBouncer's `stats_users`, for the "
        "migration job as one of its `admin_users`. Default, with `DB_POOLER=pgbouncer`: `DATABASE_URL` with the "
        "database `pgbouncer`.",
        json_schema_extra=SECRET,
    )
    exporter_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+",
        description="Address of the exporter, for back-fills: they slow down while requests wait for a connection. "
        "Default: they do not know.",
    )
    exporter_deadline: float = Field(
        default=0.75, gt=0, description="Seconds after which a scrape is answered without unfinished collectors."
    )
    exporter_scope: Literal["all", "node", "server"] = Field(
        default="all",
        description="Metrics that the exporter reports. `node`: the replicas on its machine. `server`: PostgreSQL, "
        "PgBouncer, backups and the budget. `all`: both. With several machines: one `server`, a `node` on each.",
    )
    metrics_dir: Path = Field(
        default=Path(".data/metrics"),
        description="Directory for metrics files, one folder per replica. Workers write them; the exporter reads them.",
    )
    backup_status_dir: Path | None = Field(
        default=None,
        description="Directory in which the service `backup` of `compose.prod.yml` reports the state of the backups, "
        "for the exporter.",
    )

    # Logs.
    log_format: Literal["json", "console"] = Field(
        default_factory=lambda: "console" if sys.stdout.isatty() else "json",
        description="`json` or `console`. Default: `console` on a terminal and in `make run`, otherwise `json`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info` (includes one line per request), `warning` or `error`."
    )
    log_every: int = Field(
        default=1,
        ge=1,
        description="Log every n-th successful request. The field `requests` of the line is the number of successful "
        "requests since the line before. Failed and slow requests are always logged.",
    )

    @property
    def local_database_url_file(self) -> Path:
        """Return the file with the URL of `make run`'s PostgreSQL. It exists while PostgreSQL runs."""
        return self.data_dir / "database-url"

    @property
    def local_migration_database_url_file(self) -> Path:
        """Return the file with the URL for migrations."""
        return self.data_dir / "migration-database-url"

    @property
    def local_monitor_database_url_file(self) -> Path:
        """Return the file with the URL for the exporter."""
        return self.data_dir / "monitor-database-url"

    def pool_options(self) -> dict[str, Any]:
        """Return the pool options that have a setting, as keyword arguments of `PoolOptions`."""
        options = {
            option: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if (option := _option_set_by(field)) is not None
        }
        return options if self.db_pool_pre_ping else options | {"ping_after": None}

    def known_database_url(self) -> URL | None:
        """Return the URL of the database; None if there is none."""
        return self.database_url or _url_in(self.local_database_url_file)

    def known_exporter_database_url(self) -> URL | None:
        """Return the URL at which the exporter queries PostgreSQL; None if there is none."""
        local = _url_in(self.local_monitor_database_url_file) if self.database_url is None else None
        return self.exporter_database_url or local or self.known_database_url()

    def known_pgbouncer_admin_url(self) -> URL | None:
        """Return the URL of PgBouncer's console; None if there is no PgBouncer, no console or no database."""
        if self.db_pooler != "pgbouncer" or self.pgbouncer_console == "off":
            return None
        url = self.known_database_url()
        return self.pgbouncer_admin_url or (url and url.set(database="pgbouncer"))

    def require_database_url(self) -> URL:
        """Return the URL of the database. Raise ConfigurationError if there is none."""
        if (url := self.known_database_url()) is None:
            example = "postgresql+asyncpg://user:password@host/database"
            raise ConfigurationError(f"DATABASE_URL: must be set, e.g. {example}; in development, start `make run`")
        return url

    def known_database_read_url(self) -> URL | None:
        """Return the URL of the standby; None if there is none. Raise ConfigurationError if reads cannot go there."""
        urls = self.database_read_url, self.known_database_url()
        if urls[0] is not None and any(url is None or url.get_backend_name() != "postgresql" for url in urls):
            raise ConfigurationError("DATABASE_READ_URL: both it and DATABASE_URL must name PostgreSQL servers")
        return urls[0]

    def require_secret_key(self) -> str:
        """Return the key that signs access tokens and cursors. Raise ConfigurationError if it is not set."""
        if self.secret_key is None:
            raise ConfigurationError("SECRET_KEY: must be set, e.g. to the output of `openssl rand -hex 32`")
        return self.secret_key

    def require_migration_database_url(self) -> URL:
        """Return the URL of the database to migrate. Raise ConfigurationError if there is none."""
        local = _url_in(self.local_migration_database_url_file) if self.database_url is None else None
        return self.migration_database_url or local or self.require_database_url()

    @property
    def migration_database_variable(self) -> str:
        """Return the name of the variable that sets the URL of the database to migrate."""
        return "MIGRATION_DATABASE_URL" if self.migration_database_url else "DATABASE_URL"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of values, by precedence."""
        return init_settings, env_settings, _SecretFiles(settings_cls), dotenv_settings


def _url_in(file: Path) -> URL | None:
    try:
        return make_url(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


class _SecretFiles(PydanticBaseSettingsSource):
    """The values of secrets from the files that their NAME_FILE variables name."""

    def __call__(self) -> dict[str, Any]:
        secrets = (name for name, field in self.settings_cls.model_fields.items() if is_secret(field))
        return {name: value for name in secrets if (value := _read_secret_file(name.upper())) is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return _read_secret_file(field_name.upper()), field_name, False


def _read_secret_file(variable: str) -> str | None:
    path = os.environ.get(f"{variable}_FILE")
    if not path:
        return None
    if os.environ.get(variable):
        raise ConfigurationError(f"{variable}_FILE: {variable} is set too; set only one of them")
    try:
        return _text_of(Path(path)).strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{variable}_FILE: cannot be read: {error}") from error


def _text_of(path: Path) -> str:
    """Return the text of a file, without a byte order mark. Raise OSError, or ValueError if it is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8 (on Windows, many programs write UTF-16)")
    return text


def load_settings(**overrides: Any) -> Settings:
    """Read the settings. `overrides` take precedence over the environment.

    Raise ConfigurationError with one line for each invalid variable, and for each misspelled name.
    """
    # A Service `api2` puts API2_PORT=tcp://... into each pod of its namespace.
    names = [name for name, value in os.environ.items() if not _SERVICE_LINK.match(value)]
    problems = list(_misspelled([*names, *_names_in_env_file()]))
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("\n".join([*problems, *_problems(error)])) from None
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings


def _names_in_env_file() -> list[str]:
    """Return the names in `.env`. Raise ConfigurationError if a part of the file would be ignored."""
    file = Settings.model_config.get("env_file")
    if not isinstance(file, str) or not Path(file).is_file():
        return []
    try:
        bindings = list(parse_stream(StringIO(_text_of(Path(file)))))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from None
    if wrong := next((binding for binding in bindings if binding.error), None):
        raise ConfigurationError(f"{file}: line {wrong.original.line} cannot be read; write NAME=value")
    return [binding.key for binding in bindings if binding.key is not None]


def _misspelled(names: Iterable[str]) -> Iterator[str]:
    """Yield a line for each name that is nearly a setting's. Other unknown names belong to other programs."""
    given = {name.upper() for name in names}
    settings = {name.upper() for name in Settings.model_fields}
    files = {f"{name.upper()}_FILE" for name, field in Settings.model_fields.items() if is_secret(field)}
    known = settings | files
    without_underscores = {name.replace("_", ""): name for name in known}
    # A platform may set DATABASE_URI next to DATABASE_URL.
    set_already = given | {name.removesuffix("_FILE") for name in given & files}
    for name in sorted(given - known):
        if _NAME_OF_SERVICE_LINK.search(name):
            continue
        if (meant := without_underscores.get(name.replace("_", ""))) is not None:
            if meant not in set_already:
                yield f"{name}: is no setting; did you mean {meant}?"
        elif name.removesuffix("_FILE") in settings and name.endswith("_FILE"):
            yield f"{name}: only secrets can be in a file; set {name.removesuffix('_FILE')} itself"
        elif (close := get_close_matches(name, known, n=1, cutoff=MISSPELLED)) and close[0] not in set_already:
            yield f"{name}: is no setting; did you mean {close[0]}?"


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_input=True, include_url=False):
        name = str(problem["loc"][0])
        field = Settings.model_fields.get(name)
        reason = re.sub(r"^(Input|String) should", "must", problem["msg"].removeprefix("Value error, "))
        reason = reason.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
        given = str(problem["input"])
        if _SERVICE_LINK.match(given) and name.endswith("_port"):
            reason = (
                f"is the address of a Kubernetes Service named {name.removesuffix('_port')!r}; set enableServiceLinks:"
                " false in the pod, or give the Service another name"
            )
        value = "" if field is None or is_secret(field) else f", got {given}"
        hint = "; remove the quotation marks" if value and given[:1] in ("'", '"') else ""
        yield f"{name.upper()}: {reason}{value}{hint}"


def is_secret(field: FieldInfo) -> bool:
    """Return True for a setting that a file can contain, and whose value is never shown."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("secret"))


def settings_table() -> str:
    """Return the table of settings for the documentation, in Markdown."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        is_fixed = field.default_factory is None and field.default not in (None, ())
        value = str(field.default).lower() if isinstance(field.default, bool) else field.default
        default = f"`{value}`" if is_fixed else ""
        secret = f" Also `{name.upper()}_FILE`." if is_secret(field) else ""
        rows.append(f"| `{name.upper()}` | {default} | {field.description}{secret} |")
    return "\n".join(rows)
