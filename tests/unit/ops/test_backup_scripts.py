"""ops/backup.sh and ops/postgres/headroom-backup, with programs in place of Docker, PostgreSQL and pgBackRest."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT

DUMPS = PROJECT_ROOT / "ops/backup.sh"
PGBACKREST = PROJECT_ROOT / "ops/postgres/headroom-backup"
REPOSITORY = """[{
  "status": {"code": 0},
  "db": [{"id": 1, "system-id": 7}, {"id": 2, "system-id": 8}],
  "archive": [
    {"database": {"id": 1}, "max": "000000010000000000000009"},
    {"database": {"id": 2}, "max": "000000010000000000000003"}
  ]
}]"""
needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq, which the image has")


def write_program(folder: Path, name: str, script: str) -> None:
    """Write a program that logs its arguments to the file `calls`, and then runs a script."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >>"{folder.parent}/calls"\n{script}\n')
    (folder / name).chmod(0o755)


def calls(tmp_path: Path) -> str:
    return (tmp_path / "calls").read_text()


def run(tmp_path: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def restore_dump(tmp_path: Path, psql: str) -> subprocess.CompletedProcess[str]:
    """Restore the dump of a development stack whose program psql is a script."""
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups/headroom-20260101T000000Z.dump").touch()
    write_program(tmp_path / "bin", "docker", f'case "$*" in *" ps "*) echo id ;; *" psql "*) {psql} ;; esac')
    return run(tmp_path, DUMPS, "restore", stack="dev", DATA_DIR=str(tmp_path), force="", at="")


def test_restore_over_many_tables_with_rows_is_refused(tmp_path: Path) -> None:
    refused = restore_dump(tmp_path, "for n in {1..20000}; do echo public.a_table_with_a_long_name_$n $n; done")

    assert refused.returncode == 1
    assert "the database has data" in refused.stderr
    assert "DROP DATABASE" not in calls(tmp_path)


def test_restore_over_rows_that_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    refused = restore_dump(tmp_path, "echo connection lost >&2; exit 2")

    assert refused.returncode == 1
    assert "cannot count the rows of the database" in refused.stderr
    assert "DROP DATABASE" not in calls(tmp_path)


def test_restore_over_a_migrated_database_without_rows_goes_on(tmp_path: Path) -> None:
    restored = restore_dump(
        tmp_path, "printf '%s\\n' 'public.alembic_version 1' 'public.schema_revisions 9' 'public.users 0'"
    )

    assert restored.returncode == 0, restored.stderr
    assert "DROP DATABASE headroom WITH (FORCE)" in calls(tmp_path)


@pytest.mark.parametrize(("files", "named"), [("", True), ("compose.prod.yml:compose.noswap.yml", False)])
def test_backup_of_production_uses_the_files_of_the_stack(tmp_path: Path, files: str, named: bool) -> None:
    write_program(tmp_path / "bin", "docker", "echo id")

    assert run(tmp_path, DUMPS, "backup", stack="prod", COMPOSE_FILE=files).returncode == 0
    assert ("--file compose.prod.yml exec" in calls(tmp_path)) == named


@pytest.mark.parametrize(
    ("files", "used"), [("", "compose.prod.yml"), ("compose.prod.yml:/srv/disk.yml", "compose.prod.yml:/srv/disk.yml")]
)
def test_drill_uses_the_files_of_the_stack(tmp_path: Path, files: str, used: str) -> None:
    """An override may have another volume for the repository."""
    write_program(tmp_path / "bin", "docker", f'echo "files $COMPOSE_FILE" >>"{tmp_path}/calls"')

    assert run(tmp_path, DUMPS, "restore-drill", stack="prod", COMPOSE_FILE=files).returncode == 0
    assert f"files {used}:ops/postgres/compose.drill.yml\n" in calls(tmp_path)


def test_restore_over_a_server_that_crashes_again_and_again_is_refused(tmp_path: Path) -> None:
    write_program(tmp_path / "bin", "docker", 'case "$*" in *"--status restarting"*) echo id ;; esac')

    refused = run(tmp_path, DUMPS, "restore", stack="prod", force="yes", at="", timeline="", RESTORE_LOCKED="yes")

    assert refused.returncode == 1
    assert "PostgreSQL is running or is being started" in refused.stderr
    assert "headroom-backup" not in calls(tmp_path)


def test_restore_of_production_during_a_deploy_is_refused(tmp_path: Path) -> None:
    answers = """*config*) echo '{"name": "shop", "services": {"proxy": {"image": "haproxy"}}}' ;;
        *deploy-lock*) echo is already in use >&2; exit 125 ;;"""
    write_program(tmp_path / "bin", "docker", f'case "$*" in {answers} esac')

    refused = run(tmp_path, DUMPS, "restore", stack="prod", force="", at="")

    assert (refused.returncode, refused.stderr.split(" (")[0]) == (1, "restore: the stack shop is being changed")


def restore_cluster(
    tmp_path: Path, *arguments: str, system: int = 8, wal: str = "000000010000000000000004"
) -> subprocess.CompletedProcess[str]:
    """Restore over a cluster that was shut down, from a repository of two clusters."""
    control = f"""cat <<'END'
Database system identifier:           {system}
Database cluster state:               shut down
Latest checkpoint location:           0/4000028
Latest checkpoint's REDO WAL file:    {wal}
Bytes per WAL segment:                16777216
END"""
    write_program(tmp_path / "bin", "pg_isready", "exit 2")
    write_program(tmp_path / "bin", "pg_controldata", control)
    write_program(tmp_path / "bin", "pgbackrest", f"[[ $1 != info ]] || cat <<'END'\n{REPOSITORY}\nEND")
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "PG_VERSION").write_text("17\n")
    return run(tmp_path, PGBACKREST, "restore", *arguments, PGDATA=str(data))


@needs_jq
def test_restore_with_a_timeline_passes_it_on(tmp_path: Path) -> None:
    restored = restore_cluster(tmp_path, "2026-11-27T10:20:00Z", "", "1")

    assert restored.returncode == 0, restored.stderr
    [call] = [line for line in calls(tmp_path).splitlines() if line.startswith("pgbackrest restore")]
    assert "--target=2026-11-27 10:20:00.000000+00" in call
    assert "--target-timeline=1 --delta" in call


@needs_jq
def test_restore_with_an_invalid_timeline_is_refused(tmp_path: Path) -> None:
    refused = restore_cluster(tmp_path, "", "", "before")

    assert (refused.returncode, refused.stderr) == (
        1,
        "headroom-backup: timeline: must be a number such as 1, got before\n",
    )


@needs_jq
def test_restore_over_wal_that_only_an_older_cluster_archived_is_refused(tmp_path: Path) -> None:
    refused = restore_cluster(tmp_path, wal="000000010000000000000005")

    assert refused.returncode == 1
    assert "(cluster: 000000010000000000000005, repository: 000000010000000000000003)" in refused.stderr


@needs_jq
def test_restore_over_an_interrupted_restore_goes_on(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/backup.manifest").touch()

    assert restore_cluster(tmp_path, system=9).returncode == 0


@needs_jq
def test_restore_over_another_cluster_is_refused(tmp_path: Path) -> None:
    assert "has another cluster (9) than the repository (8)" in restore_cluster(tmp_path, system=9).stderr


def run_drill(tmp_path: Path, live: dict[str, list[int]]) -> subprocess.CompletedProcess[str]:
    """Run a drill whose restored tables are empty. `live` has the rows of each live table, query by query."""
    script = tmp_path / "headroom-backup"
    script.write_text(PGBACKREST.read_text().replace("/var/lib/headroom/backups", str(tmp_path)))
    answers = "".join(
        f"""*"FROM public.{table})"*) f={tmp_path}/{table}; n=$(cat $f 2>/dev/null || echo 0); echo $((n + 1)) >$f
          rows=({" ".join(map(str, rows))}); ((rows[n])) && echo t || echo f ;;
"""
        for table, rows in live.items()
    )
    names = "\\n".join(f"public.{table}" for table in live)
    write_program(
        tmp_path / "bin",
        "psql",
        f"""case "$*" in
{answers}*pg_tables*) printf '{names}\\n' ;;
*"count(*)"*) echo 0 ;;
*version_num*) echo abc ;;
*last_archived_wal*) echo t ;;
*pg_logical_emit_message*) echo 1 000000010000000000000001 ;;
*pg_xact_status*) echo committed ;;
*) echo 1 ;;
esac""",
    )
    for name in ("pg_isready", "pgbackrest", "pg_ctl", "pg_amcheck"):
        write_program(tmp_path / "bin", name, "exit 0")
    write_program(tmp_path / "bin", "pg_controldata", 'echo "Data page checksum version: 0"')
    return run(tmp_path, "bash", script, "drill", PGDATA=str(tmp_path / "data"))


@needs_jq
def test_drill_with_a_table_that_was_filled_or_emptied_meanwhile_succeeds(tmp_path: Path) -> None:
    drilled = run_drill(tmp_path, {"filled": [0, 1], "emptied": [1, 0]})

    assert drilled.returncode == 0, drilled.stderr
    assert '"ok":true' in (tmp_path / "drill.json").read_text()


@needs_jq
def test_drill_with_a_table_that_lost_its_rows_fails(tmp_path: Path) -> None:
    drilled = run_drill(tmp_path, {"filled": [0, 1], "users": [1, 1]})

    assert drilled.returncode == 1
    assert "drill failed: public.users is empty, but has rows in the live database" in drilled.stderr
    assert '"ok":false' in (tmp_path / "drill.json").read_text()
