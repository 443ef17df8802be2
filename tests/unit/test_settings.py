"""Settings: defaults, sources, error messages, and the options of the connection pool."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from app.database import PoolOptions
from app.errors import ConfigurationError
from app.paths import PROJECT_ROOT
from app.settings import Settings, load_settings

URL = "postgresql+asyncpg://user:secret@db:5432/headroom"


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()

    assert (settings.web_concurrency, settings.db_pool_size, settings.db_max_overflow) == (4, 5, 10)
    assert (settings.db_pool_timeout, settings.db_pool_recycle, settings.db_pool_pre_ping) == (3.0, 3600, True)
    assert (settings.api_port, settings.exporter_port) == (8000, 9464)


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "7")
    monkeypatch.setenv("DB_MAX_OVERFLOW", "")

    settings = load_settings()

    assert (settings.db_pool_size, settings.db_max_overflow) == (7, 10)


@pytest.mark.parametrize(("is_terminal", "expected"), [(True, "console"), (False, "json")])
def test_log_lines_are_text_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, expected: str
) -> None:
    monkeypatch.delenv("LOG_FORMAT", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)

    assert load_settings().log_format == expected


WRONG = {
    # Numbers
    "DB_POOL_SIZE=0": "DB_POOL_SIZE: must be at least 1, got 0",
    "DB_POOL_SIZE=five": "DB_POOL_SIZE: must be a valid integer, unable to parse string as an integer, got five",
    "DB_POOL_SIZE=5.5": "DB_POOL_SIZE: must be a valid integer, unable to parse string as an integer, got 5.5",
    'DB_POOL_SIZE="5"': 'DB_POOL_SIZE: must be a valid integer, unable to parse string as an integer, got "5"; remove',
    "DB_MAX_OVERFLOW=-1": "DB_MAX_OVERFLOW: must be at least 0, got -1",
    "DB_COALESCE_MAX=0": "DB_COALESCE_MAX: must be at least 1, got 0",
    "DB_POOL_TIMEOUT=0": "DB_POOL_TIMEOUT: must be greater than 0, got 0",
    "DB_POOL_TIMEOUT=3s": "DB_POOL_TIMEOUT: must be a valid number, unable to parse string as a number, got 3s",
    "DB_POOL_TIMEOUT=inf": "DB_POOL_TIMEOUT: must be a finite number, got inf",
    "STARTUP_TIMEOUT=nan": "STARTUP_TIMEOUT: must be a finite number, got nan",
    "WEB_CONCURRENCY=auto": "WEB_CONCURRENCY: must be a valid integer",
    "GRACEFUL_TIMEOUT=8.5": "GRACEFUL_TIMEOUT: must be a valid integer",
    "ACCESS_TOKEN_SECONDS=1000000000000": "ACCESS_TOKEN_SECONDS: must be at most 31536000, got 1000000000000",
    "SIGN_IN_WINDOW=1000000000000": "SIGN_IN_WINDOW: must be at most 31536000, got 1000000000000",
    "MIGRATION_DDL_LOCK_TIMEOUT=3000000": "MIGRATION_DDL_LOCK_TIMEOUT: must be at most 2147483, got 3000000",
    "MIGRATION_REVISION_TIMEOUT=3000000": "MIGRATION_REVISION_TIMEOUT: must be at most 2147483, got 3000000",
    # Addresses
    "API_PORT=80000": "API_PORT: must be at most 65535, got 80000",
    "API_PORT=tcp://10.0.0.7:8000": "API_PORT: is the address of a Kubernetes Service named 'api'; set enable",
    "EXPORTER_PORT=tcp://10.0.0.8:9464": "EXPORTER_PORT: is the address of a Kubernetes Service named 'exporter'; set",
    "API_HOST=http://0.0.0.0": "API_HOST: must be an IPv4 address or a host name, without a scheme and a port, such as",
    "API_HOST=0.0.0.0:8000": "API_HOST: must be an IPv4 address or a host name, without a scheme and a port, such as",
    "EXPORTER_HOST=::1": "EXPORTER_HOST: must be an IPv4 address or a host name, without a scheme and a port, such as",
    "EXPORTER_URL=exporter:9464": "EXPORTER_URL: must match pattern '^https?://",
    "EXPORTER_URL=http://": "EXPORTER_URL: must match pattern '^https?://",
    "FORWARDED_ALLOW_IPS=10.0.0.0/8,10.1.0.1/16": "FORWARDED_ALLOW_IPS: 10.1.0.1/16 has host bits set; addresses",
    "FORWARDED_ALLOW_IPS=proxy": "FORWARDED_ALLOW_IPS: 'proxy' does not appear to be an IPv4 or IPv6 network; address",
    "CORS_ALLOW_ORIGINS=a.example": "CORS_ALLOW_ORIGINS: 'a.example' is no origin; an origin is a scheme, a host and",
    "CORS_ALLOW_ORIGINS=https://a.example/app": "CORS_ALLOW_ORIGINS: 'https://a.example/app' is no origin; an origin",
    "CORS_ALLOW_ORIGINS=https://*.a.example": "CORS_ALLOW_ORIGINS: 'https://*.a.example' has a wildcard; list each",
    "CORS_ALLOW_ORIGINS=https://a.example:x": "CORS_ALLOW_ORIGINS: 'https://a.example:x' is no origin: Port could not",
    "ROOT_PATH=api": "ROOT_PATH: must be a path such as /api, got api",
    "ROOT_PATH=https://a.example/api": "ROOT_PATH: must be a path such as /api, got https",
    "CORS_ALLOW_ORIGINS=null": "CORS_ALLOW_ORIGINS: 'null' is no origin; an origin is a scheme",
    # Choices
    "LOG_FORMAT=xml": "LOG_FORMAT: must be 'json' or 'console', got xml",
    "LOG_LEVEL=verbose": "LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error', got verbose",
    "DB_POOLER=pgcat": "DB_POOLER: must be 'none' or 'pgbouncer', got pgcat",
    "DB_BUDGET=yes": "DB_BUDGET: must be 'enforce', 'warn' or 'off', got yes",
    "API_DOCS=true": "API_DOCS: must be 'on' or 'off', got true",
    "DB_POOL_PRE_PING=maybe": "DB_POOL_PRE_PING: must be a valid boolean, unable to interpret input, got maybe",
    "API_REPLICA=../other": "API_REPLICA: must match pattern",
    # Secrets: without the value
    "SECRET_KEY=secret": "SECRET_KEY: must have at least 32 characters",
    f"SECRET_KEY_FALLBACKS={'x' * 32},secret": "SECRET_KEY_FALLBACKS: each key must have at least 32 characters",
    "DATABASE_URL=mysql://user:secret@db/x": "DATABASE_URL: starts with 'mysql'; supported are",
    "DATABASE_URL=user:secret@db": "DATABASE_URL: is not a database URL, such as postgresql://",
    "MIGRATION_DATABASE_URL=postgresql://u:secret@db/x?ssl=true": "MIGRATION_DATABASE_URL: has the option ssl=true; ",
    # Names
    "DB_POOLSIZE=3": "DB_POOLSIZE: is no setting; did you mean DB_POOL_SIZE?",
    "DATABASEURL=x": "DATABASEURL: is no setting; did you mean DATABASE_URL?",
    "DATABASE_URI=x": "DATABASE_URI: is no setting; did you mean DATABASE_URL?",
    "DATABASE_URL_FILES=x": "DATABASE_URL_FILES: is no setting; did you mean DATABASE_URL_FILE?",
    "web_concurrenc=2": "WEB_CONCURRENC: is no setting; did you mean WEB_CONCURRENCY?",
    "CORS_ALLOWED_ORIGINS=*": "CORS_ALLOWED_ORIGINS: is no setting; did you mean CORS_ALLOW_ORIGINS?",
    "FORWARDED_ALLOW_IP=*": "FORWARDED_ALLOW_IP: is no setting; did you mean FORWARDED_ALLOW_IPS?",
    "DB_POOL_SIZE_FILE=/x": "DB_POOL_SIZE_FILE: only secrets can be in a file; set DB_POOL_SIZE itself",
}


@pytest.mark.parametrize("assignment", WRONG)
def test_wrong_setting_is_refused_by_name_with_the_next_step(monkeypatch: pytest.MonkeyPatch, assignment: str) -> None:
    monkeypatch.setenv(*assignment.split("=", 1))

    with pytest.raises(ConfigurationError) as raised:
        load_settings()

    assert str(raised.value).startswith(WRONG[assignment])
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value).removeprefix(WRONG[assignment])


@pytest.mark.parametrize(
    "name",
    [
        "DATABASE_USER",
        "DATABASE_NAME",
        "DATABASE_PUBLIC_URL",
        "SECRET_KEY_BASE",
        "POSTGRES_PASSWORD",
        "API_KEY",
        "API_URL",
        "API_SERVICE_HOST",
        "API_SERVICE_PORT",
        "API_PORT_8000_TCP",
        "API_PORT_8000_TCP_ADDR",
        "EXPORTER_PORT_9464_TCP_PORT",
        "API2_PORT",
        "PGEXPORTER_PORT",
        "MAX_REQUESTS_JITTER",
        "PGHOST",
    ],
)
def test_variable_of_another_program_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.7:8000")

    load_settings()


def test_variables_of_our_files_are_no_misspelled_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Compose, the scripts of `ops/` and the containers read must not stop a program."""
    files = [*PROJECT_ROOT.glob("*.yml"), *PROJECT_ROOT.glob("ops/**/*.sh"), *PROJECT_ROOT.glob("ops/**/*.yml")]
    names = {name for file in files for name in re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", file.read_text())}
    assert "COMPOSE_FILE" in names
    for name in names - {name.upper() for name in Settings.model_fields}:
        if not name.endswith("_FILE"):
            monkeypatch.setenv(name, "x")

    load_settings()


@pytest.mark.parametrize("similar", ["DATABASE_URI", "DATABASEURL"])
@pytest.mark.parametrize("in_file", [False, True])
def test_similar_name_next_to_the_setting_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, similar: str, in_file: bool
) -> None:
    if in_file:
        (tmp_path / "url").write_text(URL)
        monkeypatch.delenv("DATABASE_URL", raising=False)
        monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    else:
        monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv(similar, URL)

    assert load_settings().database_url is not None


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("https://a.example/", ["https://a.example"]),
        ("HTTPS://A.Example:443, http://b.example:80", ["https://a.example", "http://b.example"]),
        ("http://localhost:3000", ["http://localhost:3000"]),
        ("http://[::1]:3000", ["http://[::1]:3000"]),
        ("https://b\u00fccher.example", ["https://xn--bcher-kva.example"]),
        ("capacitor://localhost", ["capacitor://localhost"]),
        ("app://.", ["app://."]),
        ("*", ["*"]),
    ],
)
def test_origins_have_the_form_that_browsers_send(
    monkeypatch: pytest.MonkeyPatch, value: str, origins: list[str]
) -> None:
    monkeypatch.setenv("CORS_ALLOW_ORIGINS", value)

    assert list(load_settings().cors_allow_origins) == origins


@pytest.fixture
def env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / ".env"
    monkeypatch.setitem(Settings.model_config, "env_file", str(file))
    return file


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_env_file_with_a_mark_and_crlf_is_read(env_file: Path, prefix: bytes, newline: bytes) -> None:
    env_file.write_bytes(prefix + newline.join([b"DB_POOL_SIZE=7", b"# a comment", b"", b"LOG_LEVEL=debug", b""]))

    settings = load_settings()

    assert (settings.db_pool_size, settings.log_level) == (7, "debug")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("DB_POOL_SIZE=7\n".encode("utf-16"), "is not UTF-8 text; save it as UTF-8"),
        ("DB_POOL_SIZE=7\n".encode("utf-16-le"), "is not UTF-8 text; save it as UTF-8"),
        ("DB_POOL_SIZE=7 # gr\u00f6\u00dfer\n".encode("latin-1"), "is not UTF-8 text; save it as UTF-8"),
        (b"LOG_LEVEL=info\nDB_POOL_SIZE 7\n", "line 2 cannot be read; write NAME=value"),
        (b"DB_POOLSIZE=7\n", "DB_POOLSIZE: is no setting; did you mean DB_POOL_SIZE?"),
    ],
)
def test_env_file_that_would_be_ignored_is_refused(env_file: Path, content: bytes, reason: str) -> None:
    env_file.write_bytes(content)

    with pytest.raises(ConfigurationError, match=re.escape(reason)):
        load_settings()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_secret_file_in_utf16_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "key").write_text("x" * 32, encoding=encoding)
    monkeypatch.setenv("SECRET_KEY_FILE", str(tmp_path / "key"))

    with pytest.raises(ConfigurationError, match=r"SECRET_KEY_FILE: cannot be read: .*is not UTF-8 text"):
        load_settings()


def test_every_invalid_variable_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "0")
    monkeypatch.setenv("WEB_CONCURRENCY", "none")

    with pytest.raises(ConfigurationError) as raised:
        load_settings()

    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["WEB_CONCURRENCY", "DB_POOL_SIZE"]


def test_secret_is_read_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_bytes(f"\ufeff{URL}\r\n".encode())
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))

    assert load_settings().require_database_url().password == "secret"


@pytest.mark.parametrize(("text", "keys"), [("", ()), (f"{'x' * 32}, {'y' * 32}\n", ("x" * 32, "y" * 32))])
def test_fallback_keys_are_read_from_their_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, keys: tuple[str, ...]
) -> None:
    (tmp_path / "keys").write_text(text)
    monkeypatch.setenv("SECRET_KEY_FALLBACKS_FILE", str(tmp_path / "keys"))

    settings = load_settings()

    assert settings.secret_key_fallbacks == keys
    assert "x" * 32 not in repr(settings)


def test_secret_with_a_value_and_a_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))

    with pytest.raises(ConfigurationError, match="DATABASE_URL_FILE: DATABASE_URL is set too"):
        load_settings()


def test_secret_with_a_missing_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "missing"))

    with pytest.raises(ConfigurationError, match="DATABASE_URL_FILE: cannot be read"):
        load_settings()


def test_repr_contains_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)

    assert "secret" not in repr(load_settings())


def test_missing_database_url_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL: must be set"):
        Settings(data_dir=tmp_path).require_database_url()


@pytest.mark.parametrize(
    "urls",
    [
        ("sqlite+aiosqlite://", "postgresql://standby/app"),
        ("postgresql://primary/app", "sqlite+aiosqlite://"),
    ],
)
def test_standby_requires_postgresql_at_both_urls(urls: tuple[str, str]) -> None:
    primary, standby = map(make_url, urls)

    with pytest.raises(ConfigurationError, match="DATABASE_READ_URL"):
        Settings(database_url=primary, database_read_url=standby).known_database_read_url()


def test_database_of_make_run_is_the_default(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    settings.local_database_url_file.write_text(URL)

    assert settings.require_database_url().host == "db"


def test_migration_database_url_overrides_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    assert load_settings().require_migration_database_url().host == "db"

    monkeypatch.setenv("MIGRATION_DATABASE_URL", URL.replace("db:", "direct:"))
    assert load_settings().require_migration_database_url().host == "direct"


def pool_settings() -> dict[str, str]:
    """Return the settings that set a pool option, with the option's name."""
    extras = {name: field.json_schema_extra for name, field in Settings.model_fields.items()}
    return {
        name: str(extra["pool_option"])
        for name, extra in extras.items()
        if isinstance(extra, dict) and "pool_option" in extra
    }


def test_pool_setting_names_an_option_with_the_same_default() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(PoolOptions)}

    for name, option in pool_settings().items():
        assert option in defaults, f"{name.upper()}: PoolOptions has no field {option}"
        assert Settings.model_fields[name].default == defaults[option], f"{name.upper()} and PoolOptions.{option}"


def test_every_pool_option_has_exactly_one_setting() -> None:
    """Except `one_per_task`, which the program decides, and the shares of lanes, which the budget computes."""
    computed = {"one_per_task", "expensive_share", "own_lanes"}
    options = {field.name for field in dataclasses.fields(PoolOptions)} - computed

    assert sorted(pool_settings().values()) == sorted(options)


def test_pool_options_have_the_values_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: dict[str, Any] = {}
    for value, (name, option) in enumerate(pool_settings().items(), start=7):
        monkeypatch.setenv(name.upper(), str(value))
        expected[option] = value

    assert PoolOptions(**load_settings().pool_options()) == PoolOptions(**expected)


def test_disabled_pre_ping_sets_ping_after_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_PRE_PING", "false")
    monkeypatch.setenv("DB_POOL_PING_AFTER", "7")

    assert load_settings().pool_options()["ping_after"] is None
