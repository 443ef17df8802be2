"""Every environment variable that Headroom reads, in one class.

A field is a variable of the same name in upper case. A secret can also come from a file: `DATABASE_URL_FILE` names one
whose content is the value. `.env` in the working directory is read too; the environment wins. An empty variable counts
as not set. `load_settings()` is the only way in: it turns every complaint into a ConfigurationError that names the
variable.
"""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.errors import ConfigurationError

SUPPORTED_DRIVERS = ("postgresql+asyncpg", "postgresql+psycopg", "sqlite+aiosqlite")


def _database_url(value: object) -> URL:
    try:
        url = value if isinstance(value, URL) else make_url(str(value))  # str(URL) would mask the password
    except (ArgumentError, ValueError):
        raise ValueError("is not a database URL") from None
    if url.drivername not in SUPPORTED_DRIVERS:
        raise ValueError(f"starts with {url.drivername!r}; supported are {', '.join(SUPPORTED_DRIVERS)}")
    return url


DatabaseURL = Annotated[URL, PlainValidator(_database_url)]
CommaSeparated = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(lambda value: value.replace(",", " ").split() if isinstance(value, str) else value),
]
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Frozen once read. The description of a field is its row in the README's table."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file=".env",
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    database_url: DatabaseURL | None = Field(
        default=None,
        description="Database, with an async driver. Default: the PostgreSQL of `make run`, while that runs.",
        json_schema_extra={"secret": True},
    )
    migration_database_url: DatabaseURL | None = Field(
        default=None,
        description="What migrations connect to: directly, never through a pooler. Default: `DATABASE_URL`.",
        json_schema_extra={"secret": True},
    )
    db_pooler: Literal["none", "pgbouncer"] = Field(
        default="none", description="What `DATABASE_URL` leads to: PostgreSQL itself (`none`), or a `pgbouncer`."
    )
    startup_timeout: float = Field(
        default=0.0,
        ge=0,
        description="Seconds the API and the migration job wait at their start: for the database, the API also for "
        "its schema.",
    )
    migration_lock_timeout: float = Field(
        default=300.0, ge=0, description="Seconds a migration job waits for another one to finish."
    )
    secret_key: str | None = Field(
        default=None,
        min_length=32,
        description="Signs access tokens and cursors; at least 32 characters (`openssl rand -hex 32`).",
        json_schema_extra={"secret": True},
        repr=False,
    )
    access_token_seconds: int = Field(default=1800, ge=1, description="Seconds for which a sign-in is good.")
    sign_in_account_limit: int = Field(
        default=10, ge=1, description="Failed sign-ins per account within `SIGN_IN_WINDOW`; further ones get 429."
    )
    sign_in_address_limit: int = Field(default=100, ge=1, description="The same per client address.")
    sign_in_window: int = Field(default=900, ge=1, description="Seconds after which failed sign-ins are forgotten.")
    cors_allow_origins: CommaSeparated = Field(
        default=(), description="Origins, separated by commas, whose pages may call the API. Default: none."
    )
    forwarded_allow_ips: CommaSeparated = Field(
        default=(),
        description="Proxies, separated by commas, whose `X-Forwarded-*` headers are believed. Default: none.",
    )
    api_replicas: int = Field(default=1, ge=1, description="Replicas of the API, on all machines together.")
    api_surge: int = Field(default=0, ge=0, description="Replicas that a rolling deploy runs beside them for a while.")
    web_concurrency: int = Field(default=4, ge=1, description="API workers (processes) of one replica.")
    db_pool_size: int = Field(
        default=5, ge=1, description="Connections a worker keeps open.", json_schema_extra={"pool_option": "size"}
    )
    db_max_overflow: int = Field(
        default=10,
        ge=0,
        description="Connections a worker may open beyond them under load.",
        json_schema_extra={"pool_option": "max_overflow"},
    )
    db_pool_timeout: float = Field(
        default=3.0,
        gt=0,
        description="Seconds a request may spend on getting a connection, a test or a connect included; then 503.",
        json_schema_extra={"pool_option": "timeout"},
    )
    db_pool_max_waiters: int = Field(
        default=100,
        ge=0,
        description="Requests of a worker that may wait for a connection; one more gets 503 at once.",
        json_schema_extra={"pool_option": "max_waiters"},
    )
    db_pool_recycle: int = Field(
        default=3600,
        ge=1,
        description="Seconds after which a connection is replaced.",
        json_schema_extra={"pool_option": "recycle"},
    )
    db_pool_pre_ping: bool = Field(default=True, description="Test a connection that was idle before it is handed out.")
    db_pool_ping_after: float = Field(
        default=0.5,
        ge=0,
        description="Seconds of idleness after which a connection is tested.",
        json_schema_extra={"pool_option": "ping_after"},
    )
    db_pool_shrink_after: float = Field(
        default=10.0,
        ge=0,
        description="Seconds after which a connection beyond `DB_POOL_SIZE` is closed if idle.",
        json_schema_extra={"pool_option": "shrink_after"},
    )
    db_pool_leak_after: float = Field(
        default=30.0,
        gt=0,
        description="Seconds after which a connection that a request still holds is a leak suspect: logged, counted.",
    )
    db_budget: Literal["enforce", "warn", "off"] = Field(
        default="enforce",
        description="Over the connection budget, the API and the migration job do not start (`enforce`), say so "
        "(`warn`), or do not check (`off`).",
    )
    postgres_max_connections: int | None = Field(
        default=None,
        ge=1,
        description="The server's `max_connections`, where it cannot be asked (then 100), or our share of it, where "
        "others use the server too.",
    )
    postgres_superuser_reserved_connections: int | None = Field(
        default=None, ge=0, description="The same for `superuser_reserved_connections`; 3."
    )
    postgres_reserved_connections: int | None = Field(
        default=None, ge=0, description="The same for `reserved_connections`; 0."
    )
    postgres_cores: int | None = Field(
        default=None, ge=1, description="The server's cores, for a warning about more connections than they can use."
    )
    pgbouncer_max_client_conn: int | None = Field(
        default=None, ge=1, description="PgBouncer's `max_client_conn`, where its console cannot be asked; 100."
    )
    pgbouncer_default_pool_size: int | None = Field(
        default=None, ge=1, description="The same for `default_pool_size`; 20."
    )
    pgbouncer_reserve_pool_size: int | None = Field(
        default=None, ge=0, description="The same for `reserve_pool_size`; 0."
    )
    pgbouncer_max_db_connections: int | None = Field(
        default=None, ge=0, description="The same for `max_db_connections`; 0 is no limit."
    )
    api_host: str = Field(default="127.0.0.1", description="IPv4 address the API listens on.")
    api_port: Port = Field(default=8000, description="Port the API listens on.")
    api_replica: str = Field(
        default_factory=socket.gethostname,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Name of this replica, in metrics and in `pg_stat_activity`. Default: the host name.",
    )
    graceful_timeout: int = Field(
        default=8, ge=2, description="Seconds a stopping worker may spend on the requests it has accepted."
    )
    max_requests: int = Field(default=0, ge=0, description="Replace a worker after about this many requests; 0: never.")
    max_body_bytes: int = Field(default=1_048_576, ge=1, description="Largest request body, in bytes.")
    exporter_host: str = Field(default="127.0.0.1", description="IPv4 address the exporter listens on.")
    exporter_port: Port = Field(default=9464, description="Port the exporter listens on.")
    exporter_database_url: DatabaseURL | None = Field(
        default=None,
        description="What the exporter asks for the server's view: directly, as a role with `pg_monitor`. Default: the "
        "database of `make run`, or `DATABASE_URL`.",
        json_schema_extra={"secret": True},
    )
    pgbouncer_admin_url: DatabaseURL | None = Field(
        default=None,
        description="PgBouncer's console, for the exporter, as one of its `stats_users`. Default: `DATABASE_URL` with "
        "the database `pgbouncer`, where `DB_POOLER=pgbouncer`.",
        json_schema_extra={"secret": True},
    )
    exporter_deadline: float = Field(
        default=0.75, gt=0, description="Seconds after which a scrape is answered without what is not there yet."
    )
    metrics_dir: Path = Field(
        default=Path(".data/metrics"),
        description="Directory that workers write and the exporter reads, a folder a replica.",
    )
    data_dir: Path = Field(default=Path(".data"), description="Where `make run` keeps its PostgreSQL.")
    log_format: Literal["json", "console"] = Field(
        default_factory=lambda: "console" if sys.stdout.isatty() else "json",
        description="`json`, or `console` for people. Default: `console` on a terminal and in `make run`, else `json`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info` (a line a request), `warning` or `error`."
    )

    @property
    def local_database_url_file(self) -> Path:
        """Where `headroom up` says how to reach its PostgreSQL, for as long as that runs."""
        return self.data_dir / "database-url"

    @property
    def local_migration_database_url_file(self) -> Path:
        """The same for migrations."""
        return self.data_dir / "migration-database-url"

    @property
    def local_monitor_database_url_file(self) -> Path:
        """The same for the exporter."""
        return self.data_dir / "monitor-database-url"

    def pool_options(self) -> dict[str, Any]:
        """Return the options of the connection pool that settings set, as arguments of `PoolOptions`."""
        options = {
            option: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if (option := _pool_option(field)) is not None
        }
        return options if self.db_pool_pre_ping else options | {"ping_after": None}

    def known_database_url(self) -> URL | None:
        """The database to use, if there is one."""
        return self.database_url or _url_in(self.local_database_url_file)

    def known_exporter_database_url(self) -> URL | None:
        """What the exporter asks for the server's view, if there is one."""
        local = _url_in(self.local_monitor_database_url_file) if self.database_url is None else None
        return self.exporter_database_url or local or self.known_database_url()

    def known_pgbouncer_admin_url(self) -> URL | None:
        """PgBouncer's console, if there is one."""
        if self.db_pooler != "pgbouncer":
            return None
        url = self.known_database_url()
        return self.pgbouncer_admin_url or (url and url.set(database="pgbouncer"))

    def require_database_url(self) -> URL:
        """The database to use. Raises ConfigurationError where there is none."""
        if (url := self.known_database_url()) is None:
            example = "postgresql+asyncpg://user:password@host/database"
            raise ConfigurationError(f"DATABASE_URL: must be set, e.g. {example} (or start `make run`)")
        return url

    def require_secret_key(self) -> str:
        """What signs tokens. Raises ConfigurationError where it is not set."""
        if self.secret_key is None:
            raise ConfigurationError("SECRET_KEY: must be set, e.g. to the output of `openssl rand -hex 32`")
        return self.secret_key

    def require_migration_database_url(self) -> URL:
        """The database to migrate. Raises ConfigurationError where there is none."""
        local = _url_in(self.local_migration_database_url_file) if self.database_url is None else None
        return self.migration_database_url or local or self.require_database_url()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls), dotenv_settings


def _url_in(file: Path) -> URL | None:
    try:
        return make_url(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads NAME_FILE for every field marked as a secret."""

    def __call__(self) -> dict[str, Any]:
        secrets = (name for name, field in self.settings_cls.model_fields.items() if _is_secret(field))
        return {name: value for name in secrets if (value := _read_secret_file(name.upper())) is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return _read_secret_file(field_name.upper()), field_name, False


def _read_secret_file(variable: str) -> str | None:
    path = os.environ.get(f"{variable}_FILE")
    if not path:
        return None
    if os.environ.get(variable):
        raise ConfigurationError(f"{variable}_FILE: contradicts {variable}, which is set too")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{variable}_FILE: cannot be read: {error}") from error


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; `overrides` win over it.

    Raises ConfigurationError with one line for each variable that is not acceptable.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_complaints(error))) from None


def _complaints(error: ValidationError) -> Iterator[str]:
    for complaint in error.errors(include_input=True, include_url=False):
        name = str(complaint["loc"][0])
        field = Settings.model_fields.get(name)
        reason = complaint["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        reason = reason.replace("greater than or equal to", "at least")
        shown = "" if field is None or _is_secret(field) else f", got {complaint['input']}"
        yield f"{name.upper()}: {reason}{shown}"


def _is_secret(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("secret"))


def _pool_option(field: FieldInfo) -> Any:
    """Return the name of the pool option that a field sets; None if it sets none."""
    return field.json_schema_extra.get("pool_option") if isinstance(field.json_schema_extra, dict) else None


def settings_table() -> str:
    """The README's table of settings, in Markdown."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        known = field.default_factory is None and field.default not in (None, ())
        default = (
            f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`" if known else ""
        )
        secret = f" Also `{name.upper()}_FILE`." if _is_secret(field) else ""
        rows.append(f"| `{name.upper()}` | {default} | {field.description}{secret} |")
    return "\n".join(rows)
