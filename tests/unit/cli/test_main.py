import os
import shutil
import socket
import subprocess

import pytest

from app.cli import main as cli
from app.settings import settings_table


def test_settings_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings"]) == 0
    assert capsys.readouterr().out.strip() == settings_table()


@pytest.mark.parametrize("command", ["up", "exporter", "seed"])
def test_command_with_invalid_setting_prints_one_line_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "0")

    assert cli.main([command]) == 1
    assert capsys.readouterr().err == f"headroom {command}: DB_POOL_SIZE: must be at least 1, got 0\n"


def test_up_on_port_in_use_prints_one_line_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        monkeypatch.setenv("API_PORT", str(port))
        monkeypatch.setenv("LOG_FORMAT", "console")  # otherwise up() sets it, for the tests after this one too
        assert cli.main(["up"]) == 1

    assert capsys.readouterr().err == (
        f"headroom up: API_PORT: cannot listen on 127.0.0.1:{port}: Address already in use; stop the program"
        " that listens there, or set API_PORT to another port\n"
    )


def test_seed_on_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite+aiosqlite://")

    assert cli.main(["seed"]) == 1
    assert capsys.readouterr().err == "headroom seed: DATABASE_URL: seeding needs PostgreSQL, got sqlite\n"


@pytest.mark.parametrize("count", ["-1", "many"])
def test_seed_with_invalid_count_is_refused(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["seed", "--users", count])

    assert stopped.value.code == 2
    assert "--users" in capsys.readouterr().err


def test_help_shows_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    """Each example is a command that the parser accepts."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])

    examples = [line.split("  ")[1].split() for line in capsys.readouterr().out.splitlines() if "  headroom " in line]
    assert len(examples) >= 4
    for program, *arguments in examples:
        assert program == "headroom"
        cli._parser().parse_args(arguments)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["headroom", "b"], {"budget", "backfill"}),
        (["headroom", "seed", "--"], {"--help", "--users", "--posts"}),
        (["headroom", "create-admin", "--e"], {"--email"}),
        (["headroom", "nothing", ""], set()),
    ],
)
def test_bash_completes_commands_and_options(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: set[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    line = " ".join(f"'{word}'" for word in words)
    script += f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _headroom; printf "%s\\n" "${{COMPREPLY[@]}}"'

    bash = shutil.which("bash")
    assert bash
    assert set(subprocess.check_output([bash, "-c", script], text=True).split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells_has_every_command_and_option(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert cli.main(["completion", shell]) == 0

    script = capsys.readouterr().out
    for name, parser in cli._parser().get_default("commands").items():
        assert name in script
        for option in parser._option_string_actions:
            assert option.startswith("--") <= (option.lstrip("-") in script)


def test_empty_number_of_workers_does_not_reach_gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable counts as not set, but Gunicorn and Uvicorn read it as a number."""
    monkeypatch.setenv("WEB_CONCURRENCY", "")
    started = []
    monkeypatch.setattr(os, "execv", lambda *_: started.append(os.environ.get("WEB_CONCURRENCY")))

    cli.main(["api"])

    assert started == [None]
