"""Settings: defaults, sources, error messages, and the options of the connection pool."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from app.database import PoolOptions
from app.errors import ConfigurationError
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


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DB_POOL_SIZE", "0", "DB_POOL_SIZE: must be at least 1, got 0"),
        ("DB_POOL_SIZE", "five", "DB_POOL_SIZE: must be a valid integer, unable to parse string"),
        ("DB_MAX_OVERFLOW", "-1", "DB_MAX_OVERFLOW: must be at least 0, got -1"),
        ("DB_POOL_TIMEOUT", "0", "DB_POOL_TIMEOUT: must be greater than 0, got 0"),
        ("API_PORT", "80000", "API_PORT: must be at most 65535, got 80000"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT: must be 'json' or 'console', got xml"),
        (
            "FORWARDED_ALLOW_IPS",
            "10.0.0.0/8,10.1.0.1/16",
            "FORWARDED_ALLOW_IPS: 10.1.0.1/16 has host bits set; addresses",
        ),
        ("FORWARDED_ALLOW_IPS", "proxy", "FORWARDED_ALLOW_IPS: 'proxy' does not appear to be an IPv4 or IPv6 network"),
        ("API_REPLICA", "../other", "API_REPLICA: must match pattern"),
        ("SECRET_KEY", "secret", "SECRET_KEY: must have at least 32 characters"),
        (
            "SECRET_KEY_FALLBACKS",
            f"{'x' * 32},secret",
            "SECRET_KEY_FALLBACKS: each key must have at least 32 characters",
        ),
        ("DATABASE_URL", "mysql://user:secret@db/x", "DATABASE_URL: starts with 'mysql'; supported are"),
        ("DATABASE_URL", "user:secret@db", "DATABASE_URL: is not a database URL"),
    ],
)
def test_invalid_value_raises_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as raised:
        load_settings()

    assert str(raised.value).startswith(message)
    assert "secret" not in str(raised.value)


def test_every_invalid_variable_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "0")
    monkeypatch.setenv("WEB_CONCURRENCY", "none")

    with pytest.raises(ConfigurationError) as raised:
        load_settings()

    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["WEB_CONCURRENCY", "DB_POOL_SIZE"]


def test_secret_is_read_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
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
    """Except `one_per_task`, which the program decides, and `expensive_share`, which the budget computes."""
    options = {field.name for field in dataclasses.fields(PoolOptions)} - {"one_per_task", "expensive_share"}

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
