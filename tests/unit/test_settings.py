from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.settings import Settings, load_settings

URL = "postgresql+asyncpg://someone:secret@db:5432/headroom"


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()

    assert (settings.web_concurrency, settings.db_pool_size, settings.db_max_overflow) == (4, 5, 10)
    assert (settings.db_pool_timeout, settings.db_pool_recycle, settings.db_pool_pre_ping) == (3.0, 3600, True)
    assert (settings.api_port, settings.exporter_port) == (8000, 9464)


def test_a_variable_sets_its_field_and_an_empty_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "7")
    monkeypatch.setenv("DB_MAX_OVERFLOW", "")

    settings = load_settings()

    assert (settings.db_pool_size, settings.db_max_overflow) == (7, 10)


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("DB_POOL_SIZE", "0", "DB_POOL_SIZE: must be at least 1, got 0"),
        ("DB_POOL_SIZE", "five", "DB_POOL_SIZE: must be a valid integer, unable to parse string"),
        ("DB_MAX_OVERFLOW", "-1", "DB_MAX_OVERFLOW: must be at least 0, got -1"),
        ("DB_POOL_TIMEOUT", "0", "DB_POOL_TIMEOUT: must be greater than 0, got 0"),
        ("API_PORT", "80000", "API_PORT: must be less than or equal to 65535, got 80000"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT: must be 'json' or 'console', got xml"),
        ("API_REPLICA", "../other", "API_REPLICA: String should match pattern"),
        ("DATABASE_URL", "mysql://someone:secret@db/x", "DATABASE_URL: starts with 'mysql'; supported are"),
        ("DATABASE_URL", "someone:secret@db", "DATABASE_URL: is not a database URL"),
    ],
)
def test_a_value_that_is_not_acceptable_stops_the_program_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as raised:
        load_settings()

    assert str(raised.value).startswith(complaint)
    assert "secret" not in str(raised.value)


def test_every_bad_variable_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "0")
    monkeypatch.setenv("WEB_CONCURRENCY", "none")

    with pytest.raises(ConfigurationError) as raised:
        load_settings()

    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["WEB_CONCURRENCY", "DB_POOL_SIZE"]


def test_a_secret_can_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))

    assert load_settings().require_database_url().password == "secret"


def test_a_secret_that_is_set_twice_is_a_contradiction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))

    with pytest.raises(ConfigurationError, match="DATABASE_URL_FILE: contradicts DATABASE_URL"):
        load_settings()


def test_a_secret_whose_file_is_missing_stops_the_program_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "missing"))

    with pytest.raises(ConfigurationError, match="DATABASE_URL_FILE: cannot be read"):
        load_settings()


def test_no_password_is_shown_by_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)

    assert "secret" not in repr(load_settings())


def test_a_database_is_asked_for_by_name_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL: must be set"):
        Settings(data_dir=tmp_path).require_database_url()


def test_the_database_of_make_run_serves_whoever_works_beside_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    settings.local_database_url_file.write_text(URL)

    assert settings.require_database_url().host == "db"


def test_migrations_have_a_database_url_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    assert load_settings().require_migration_database_url().host == "db"

    monkeypatch.setenv("MIGRATION_DATABASE_URL", URL.replace("db:", "direct:"))
    assert load_settings().require_migration_database_url().host == "direct"
