"""Deploys over SSH: which host, which files, and what happens there. `ssh` is a program that runs the command here."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from ops.deploy import remote
from ops.deploy.errors import DeployFailed

# Logs its arguments; runs the last one in the folder that stands for the home directory on the host.
SSH = '#!/bin/bash\nprintf "%s\\n" "${@:1:$#-1}" >>"$HOST_HOME/../ssh"\ncd "$HOST_HOME" && exec bash -c "${@: -1}"\n'
# In place of Docker, which the host would have: every command fails, and names itself.
DOCKER = '#!/bin/bash\necho "docker $* in $PWD as $DEPLOY_BY $DEPLOY_VERSION" >&2\nexit 1\n'


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home directory on the host."""
    home = tmp_path / "home"
    programs = tmp_path / "bin"
    for folder in (home, programs):
        folder.mkdir()
    for name, script in (("ssh", SSH), ("docker", DOCKER)):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOST_HOME", str(home))
    return home


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a git repository with the program and some other files."""
    root = tmp_path / "tree"
    (root / "app").mkdir(parents=True)
    (root / "app/old.py").write_text("old")
    (root / ".gitignore").write_text(".env\n.deploy/\n")
    (root / ".env").write_text("of the laptop")
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    program = root / "ops/deploy"
    program.mkdir(parents=True)
    for file in (PROJECT_ROOT / "ops/__init__.py", *(PROJECT_ROOT / "ops/deploy").glob("*.py")):
        (root / file.relative_to(PROJECT_ROOT)).write_bytes(file.read_bytes())
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def deploy(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ops.deploy", "--on", "ops@db1:2222", *options]
    return subprocess.run(
        command, cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )


def test_deploy_on_a_host_runs_there_with_the_files_of_here(host: Path, tree: Path, tmp_path: Path) -> None:
    (host / "headroom").mkdir()
    (host / "headroom/.env").write_text("of the host")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True).stdout

    finished = deploy(tree, "deploy", "--image", "x y")

    there = host / "headroom"
    assert finished.returncode == 1
    assert f"in {there} as " in finished.stderr
    assert f"1.2.3-{commit.strip()}" in finished.stderr
    assert (tmp_path / "ssh").read_text().split() == ["-p", "2222", "ops@db1"] * 2
    assert (there / "app/old.py").read_text() == "old"
    assert (there / ".env").read_text() == "of the host"
    assert sorted(path.name for path in (there / ".deploy").iterdir()) == ["files", "lock"]


def test_deleted_file_is_deleted_on_the_host(host: Path, tree: Path) -> None:
    deploy(tree, "--directory", "other folder", "deploy")
    (tree / "app/old.py").unlink()
    (tree / "app/new.py").write_text("not committed")

    deploy(tree, "--directory", "other folder", "deploy")

    assert [path.name for path in (host / "other folder/app").iterdir()] == ["new.py"]


def test_host_that_ssh_cannot_reach_is_named(host: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bin/ssh").write_text("#!/bin/bash\nexit 255\n")
    (tree / "large").write_bytes(os.urandom(1_000_000))  # more than a pipe holds

    finished = deploy(tree, "deploy")

    assert finished.stderr == "deploy: ssh ops@db1:2222: the files could not be sent (exit status 255)\n"


def test_tree_is_not_replaced_during_another_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a.tar").touch()
    with (
        remote.unpacked(""),
        remote.unpacked(""),
        pytest.raises(DeployFailed, match="another operation runs in"),
        remote.unpacked("a.tar"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".deploy"], "what was sent is removed"


@pytest.mark.parametrize(
    ("on", "docker_host", "expected"),
    [
        ("ops@db1", "", "ops@db1"),
        ("", "ssh://ops@db1:22", "ops@db1:22"),
        ("", "unix:///var/run/docker.sock", ""),
    ],
)
def test_host_is_that_of_the_docker_context(
    monkeypatch: pytest.MonkeyPatch, on: str, docker_host: str, expected: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    assert remote.target(on) == expected


def test_docker_engine_without_ssh_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://db1:2376")
    with pytest.raises(DeployFailed, match=r"on another machine.*on=user@host"):
        remote.target("")


def test_archive_with_a_path_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "file", "../file")
    with pytest.raises(DeployFailed, match=r"\.\./file: is outside of the folder"):
        remote.replace_tree(tmp_path / "root", tmp_path / "a.tar")
