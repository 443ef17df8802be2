"""What the README says, held against the code."""

import re
from pathlib import Path

from app.settings import Settings, settings_table

README = Path("README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_table_of_settings() -> None:
    assert settings_table() in README, "README.md: paste the output of `headroom settings`"


def test_the_example_environment_names_only_settings_and_ports_of_compose() -> None:
    compose = Path("docker-compose.yml").read_text(encoding="utf-8")
    named = re.findall(r"^# ([A-Z_]+)=", Path(".env.example").read_text(encoding="utf-8"), re.MULTILINE)

    assert named
    for name in named:
        assert name.lower() in Settings.model_fields or f"${{{name}:-" in compose


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_the_compose_file_has_the_pool_settings_of_the_code() -> None:
    compose = Path("docker-compose.yml").read_text(encoding="utf-8")

    for name in ("WEB_CONCURRENCY", "DB_POOL_SIZE", "DB_MAX_OVERFLOW"):
        assert f"${{{name}:-{Settings.model_fields[name.lower()].default}}}" in compose
