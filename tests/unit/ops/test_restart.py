"""ops/restart.py with a fake `docker`, and ops/pgbouncer/pause.sh with a fake `psql`: every failure is undone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from tests.unit.ops.test_backup_scripts import calls, write_program

PAUSE = PROJECT_ROOT / "ops/pgbouncer/pause.sh"
STATISTICS = (
    r"# pxname,svname,status,check_status,scur\nreads,api1,UP,L7OK,0\nreads,BACKEND,UP,,0\nwrites,BACKEND,UP,,0"
)
BUDGET = {"name": "server connections", "headroom": 58}
MODEL = {"name": "shop", "services": {"proxy": {"image": "haproxy"}}}
INSPECTED = {
    "RestartCount": 0,
    "State": {"Status": "running"},
    "NetworkSettings": {"Networks": {"stack_pool": {"IPAddress": "172.18.0.9"}}},
}


class Engine:
    """A `docker` with a proxy, a replica, PgBouncer and PostgreSQL. `**scripts` replace what it does, by pattern."""

    def __init__(self, tmp_path: Path, scripts: dict[str, str], budget: dict[str, object] = BUDGET) -> None:
        self.tmp_path = tmp_path
        defaults = {
            '*" ps --status running"*': "echo ${@: -1}",
            '*" ps --all"*': "echo postgres",
            '*" console hold"*': "echo held",
            '*" console show info"': "echo Uptime_sec: 60",
            '*" console show"*': f"printf '{STATISTICS}\\n'",
            '*" console release"*': "echo released 7",
            '*" pause 5 120"': f"echo paused; cat; echo END-OF-PAUSE >>{tmp_path}/calls",
            '*" run --detach"*': f"touch {tmp_path}/trial; echo id",
            '"rm --force shop-pgbouncer-trial"': (
                f"if [[ -e {tmp_path}/trial ]]; then rm {tmp_path}/trial; echo END-OF-TRIAL >>{tmp_path}/calls; fi"
            ),
            '*" config --format json"': f"echo '{json.dumps(MODEL)}'",
            '"run --rm --interactive --name shop-deploy-lock"*': "cat",
            '*" budget --json"': f"echo '{json.dumps({'checks': [budget]})}'",
            '"inspect "*': f"echo '{json.dumps([INSPECTED])}'",
        }
        cases = "\n".join(f"{pattern}) {script} ;;" for pattern, script in [*scripts.items(), *defaults.items()])
        write_program(tmp_path / "bin", "docker", f'case "$*" in\n{cases}\nesac')

    def start(self, service: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ops.restart", service, "--no-build"],
            cwd=PROJECT_ROOT,
            env=os.environ | {"PATH": f"{self.tmp_path / 'bin'}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def restart(self, service: str) -> tuple[int, str]:
        """Return the exit status and the messages."""
        with self.start(service) as process:
            _, messages = process.communicate(timeout=60)
        return process.returncode, messages

    def steps(self) -> list[str]:
        """Return the names of the calls that change something, in their order."""
        names = {
            "console hold": "hold",
            "pause 5 120": "pause",
            "--force-recreate postgres": "postgres",
            "run --detach --no-deps --name shop-pgbouncer-trial pgbouncer": "trial",
            "END-OF-TRIAL": "end of trial",
            "--force-recreate pgbouncer": "pgbouncer",
            "END-OF-PAUSE": "resume",
            "console release": "release",
        }
        found = [name for line in calls(self.tmp_path).splitlines() for part, name in names.items() if part in line]
        return list(dict.fromkeys(found))


def test_restart_of_postgres_holds_pauses_and_undoes_both(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {})

    assert engine.restart("postgres") == (0, "")
    assert engine.steps() == ["hold", "pause", "postgres", "resume", "release"]


def test_postgres_that_does_not_start_ends_pause_and_hold(tmp_path: Path) -> None:
    crashed = json.dumps([{**INSPECTED, "RestartCount": 1}])
    engine = Engine(
        tmp_path,
        {
            '*" pg_isready "*': "exit 2",
            '"inspect "*': f"echo '{crashed}'",
            '"logs "*': "echo FATAL: no space",
        },
    )

    status, messages = engine.restart("postgres")

    assert status == 1
    assert "PostgreSQL does not start" in messages
    assert "FATAL: no space" in messages
    assert engine.steps() == ["hold", "pause", "postgres", "resume", "release"]


def test_configuration_that_postgres_refuses_changes_nothing(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {'*" run --rm"*': "echo invalid value for parameter >&2; exit 1"})

    status, messages = engine.restart("postgres")

    assert status == 1
    assert "invalid value for parameter" in messages
    assert engine.steps() == []


def test_pause_that_times_out_restarts_nothing(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {'*" pause 5 120"': "echo a transaction has not ended within 5 s >&2; exit 4"})

    status, messages = engine.restart("postgres")

    assert (status, messages) == (
        1,
        "restart-postgres: PgBouncer did not pause: a transaction has not ended within 5 s\n",
    )
    assert engine.steps() == ["hold", "pause", "release"]


def test_hold_of_another_restart_is_left_alone(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {'*" console hold"*': "echo hold: requests are already held"})

    status, messages = engine.restart("postgres")

    assert status == 1
    assert "requests are already held" in messages
    assert engine.steps() == ["hold"]


def test_proxy_without_the_command_hold_is_named(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {'*" console hold"*': "printf \"Unknown command: 'hold', but maybe:\\nhelp\\n\""})

    assert "load its configuration: docker compose exec proxy reload" in engine.restart("postgres")[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_before_the_restart_undoes_everything(tmp_path: Path, number: signal.Signals) -> None:
    engine = Engine(tmp_path, {'*" pause 5 120"': f"sleep 1; echo paused; cat; echo END-OF-PAUSE >>{tmp_path}/calls"})
    with engine.start("postgres") as process:
        assert process.stdout is not None
        while "new requests wait" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, messages = process.communicate(timeout=60)

    assert (process.returncode, messages) == (130, "restart-postgres: interrupted; nothing was restarted\n")
    assert "postgres" not in engine.steps()
    assert engine.steps()[-1] == "release"
    assert ("pause" in engine.steps()) == ("resume" in engine.steps())


def test_signal_during_the_restart_is_ignored_until_the_end(tmp_path: Path) -> None:
    engine = Engine(
        tmp_path, {'*" --force-recreate postgres"': "pid=$(ps -o ppid= $$); kill -INT $pid; kill -TERM $pid"}
    )

    assert engine.restart("postgres") == (0, "")
    assert engine.steps() == ["hold", "pause", "postgres", "resume", "release"]


def test_restart_after_a_reload_waits_for_the_old_process(tmp_path: Path) -> None:
    """The old process answers on connections that it has, and holds nothing."""
    seen = tmp_path / "seen"
    uptime = f"if [[ -e {seen} ]]; then echo Uptime_sec: 11; else touch {seen}; echo Uptime_sec: 3; fi"
    engine = Engine(tmp_path, {'*" console show info"': uptime})

    assert engine.restart("pgbouncer") == (0, "")
    lines = [line for line in calls(tmp_path).splitlines() if "console show info" in line or "console hold" in line]
    assert ["info" in line for line in lines] == [True, True, False]


def test_restart_without_a_proxy_still_pauses(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {'*" ps --status running --quiet proxy"': "exit 0"})

    assert engine.restart("postgres") == (0, "")
    assert engine.steps() == ["pause", "postgres", "resume"]


def test_new_pgbouncer_is_tried_before_requests_are_held(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {})

    assert engine.restart("pgbouncer") == (0, "")
    assert engine.steps() == ["trial", "end of trial", "hold", "pgbouncer", "release"]
    assert "172.18.0.9" in calls(tmp_path)


def test_new_pgbouncer_that_does_not_serve_replaces_nothing(tmp_path: Path) -> None:
    crashed = json.dumps([{**INSPECTED, "RestartCount": 1}])
    refuse = "printf 'Traceback\\n  File\\npsycopg.OperationalError: refused\\n\\tIs it up?\\n' >&2; exit 1"
    engine = Engine(
        tmp_path,
        {'*" 172.18.0.9"': refuse, '"inspect "*': f"echo '{crashed}'", '"logs "*': "echo FATAL bad value >&2"},
    )

    assert engine.restart("pgbouncer") == (
        1,
        "restart-pgbouncer: the new PgBouncer does not serve: psycopg.OperationalError: refused\nFATAL bad value\n",
    )
    assert engine.steps() == ["trial", "end of trial"]


def test_trial_of_pgbouncer_ends_with_a_signal_while_it_starts(tmp_path: Path) -> None:
    interrupt = f"kill -INT $(ps -o ppid= $$); sleep 0.5; touch {tmp_path}/trial"
    engine = Engine(tmp_path, {'*" run --detach"*': interrupt})

    assert engine.restart("pgbouncer") == (130, "restart-pgbouncer: interrupted; nothing was restarted\n")
    assert engine.steps() == ["trial", "end of trial"]


def test_restart_during_a_deploy_is_refused(tmp_path: Path) -> None:
    engine = Engine(
        tmp_path,
        {
            '"run --rm --interactive --name shop-deploy-lock"*': "echo name is already in use >&2; exit 125",
            '"inspect --format"*': "echo deploy by ann, since 10:20",
        },
    )

    assert engine.restart("postgres") == (
        1,
        "restart-postgres: the stack shop is being changed (deploy by ann, since 10:20): wait until it has ended\n",
    )
    assert engine.steps() == []


def test_trial_of_pgbouncer_over_budget_is_refused(tmp_path: Path) -> None:
    engine = Engine(tmp_path, {}, budget={**BUDGET, "headroom": 1})

    status, messages = engine.restart("pgbouncer")

    assert status == 1
    assert "a trial of PgBouncer needs 2 server connections, but 1 are left" in messages
    assert engine.steps() == []


def pause(tmp_path: Path, psql: str, seconds: str = "5") -> subprocess.CompletedProcess[str]:
    """Run pause.sh with an input that has ended."""
    show = """*"SHOW STATE"*) echo 'paused|no' ;; *"SHOW CONFIG"*) echo 'query_wait_timeout|2|120|yes' ;;"""
    write_program(tmp_path / "bin", "psql", f'case "$*" in {psql} {show} esac')
    return subprocess.run(
        ["bash", "-c", PAUSE.read_text(), "pause", seconds, "20"],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def commands(tmp_path: Path) -> list[str]:
    """Return the commands of the console that change something."""
    found = [line.partition("--command ")[2] for line in calls(tmp_path).splitlines()]
    return [each for each in found if not each.startswith("SHOW")]


def test_pause_ends_with_its_input_and_restores_the_limit(tmp_path: Path) -> None:
    paused = pause(tmp_path, "")

    assert (paused.returncode, paused.stdout) == (0, "paused\n")
    expected = ["SET query_wait_timeout = 25", "PAUSE", "RESUME", "SET query_wait_timeout = 2"]
    assert commands(tmp_path) == expected


def test_pause_that_a_transaction_prevents_is_undone(tmp_path: Path) -> None:
    refused = pause(tmp_path, '*"--command PAUSE"*) exec sleep 30 ;;', seconds="1")

    assert (refused.returncode, refused.stdout, refused.stderr) == (4, "", "a transaction has not ended within 1 s\n")
    assert commands(tmp_path)[-2:] == ["RESUME", "SET query_wait_timeout = 2"]


def test_pause_of_another_program_is_left_alone(tmp_path: Path) -> None:
    refused = pause(tmp_path, """*"SHOW STATE"*) echo 'paused|yes' ;;""")

    assert (refused.returncode, refused.stderr) == (3, "PgBouncer is paused already\n")
    assert commands(tmp_path) == []
