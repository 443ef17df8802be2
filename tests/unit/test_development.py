"""Tracebacks for a terminal, and the configurations of editors."""

import json
from importlib.util import find_spec
from xml.etree import ElementTree

import pytest
from sqlalchemy import create_engine, text

from app.development.tracebacks import ShortFormatter
from app.paths import PROJECT_ROOT


def formatted(error: BaseException) -> str:
    return ShortFormatter().formatException((type(error), error, error.__traceback__))


def test_traceback_has_lines_of_the_project_and_the_last_one() -> None:
    with pytest.raises(Exception, match="no such table") as raised, create_engine("sqlite://").connect() as connection:
        connection.execute(text("SELECT * FROM missing"))

    short = formatted(raised.value)

    assert "test_traceback_has_lines_of_the_project" in short
    assert "frames of libraries are left out" in short
    assert "The above exception was the direct cause of the following exception" in short
    assert short.count("  File ") < 10


def test_traceback_of_a_group_has_the_errors_of_its_members() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        raise ExceptionGroup("several", [ValueError("first"), ValueError("second")])

    assert "ValueError: first" in formatted(raised.value)
    assert "left out" not in formatted(raised.value)


def test_configurations_of_editors_run_modules_that_exist() -> None:
    launch = json.loads((PROJECT_ROOT / ".vscode/launch.json").read_text())
    pycharm = ElementTree.parse(PROJECT_ROOT / ".run/make-dev.run.xml")
    modules = [each["module"] for each in launch["configurations"]]
    modules += [each.attrib["value"] for each in pycharm.iter("option") if each.attrib["name"] == "SCRIPT_NAME"]

    assert modules == ["app.cli.main", "pytest", "app.cli.main"]
    assert all(find_spec(module) for module in modules)


def test_devcontainer_has_the_python_of_the_image() -> None:
    devcontainer = json.loads((PROJECT_ROOT / ".devcontainer/devcontainer.json").read_text())
    dockerfile = (PROJECT_ROOT / ".devcontainer" / devcontainer["build"]["dockerfile"]).read_text()
    [base, *_] = [line for line in (PROJECT_ROOT / "Dockerfile").read_text().splitlines() if line.startswith("FROM ")]

    assert f"{base.removesuffix(' AS base')}\n" in dockerfile
