"""The settings of Gunicorn's master, at the start and at a reload."""

import pytest

from app.errors import ConfigurationError
from app.server import startup


@pytest.fixture(autouse=True)
def _first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_settings", None)
    monkeypatch.setenv("DATABASE_URL", "postgresql+asyncpg://u@h/d")
    monkeypatch.setenv("SECRET_KEY", "k" * 64)


def test_reload_with_an_invalid_setting_keeps_the_settings_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = startup.read_settings()
    monkeypatch.setenv("DB_POOL_SIZE", "many")

    assert startup.read_settings() is first

    assert "reload with the settings before" in caplog.text
    assert "DB_POOL_SIZE" in caplog.text
    monkeypatch.setenv("DB_POOL_SIZE", "7")
    assert startup.read_settings().db_pool_size == 7


def test_start_with_an_invalid_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "many")

    with pytest.raises(ConfigurationError, match="DB_POOL_SIZE"):
        startup.read_settings()
