"""Run an operation on the host of the Docker Engine, over SSH.

compose.prod.yml mounts files of its folder, and a Docker Engine takes them from its own host. So the tree is sent
there, and the operation runs there: in `directory`, with the `.env` and the `.secrets/` of that folder. Secrets never
leave the host. The host needs Docker, Python 3.11 and an SSH server.
"""

import fcntl
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from ops.deploy.errors import DeployFailed
from ops.deploy.operations import version_of
from ops.deploy.timeline import operator

# In the folder on the host; git ignores it.
STATE = Path(".deploy")
# The files that the last deploy has sent.
FILES = STATE / "files"
_PROGRAM = "ops/__init__.py", "ops/deploy"


def target(on: str) -> str:
    """Return the host to run on, as user@host[:port]; empty for this one. Raise DeployFailed.

    Without `on`, it is the one of the Docker context, or of DOCKER_HOST.
    """
    if on:
        return on
    endpoint = os.environ.get("DOCKER_HOST") or _endpoint_of_context()
    scheme, _, address = endpoint.partition("://")
    if scheme == "ssh":
        return address.partition("/")[0]
    if scheme == "tcp":
        raise DeployFailed(f"the Docker Engine {endpoint} is on another machine, which SSH must reach: on=user@host")
    return ""


def _endpoint_of_context() -> str:
    command = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError as error:
        raise DeployFailed(f"docker: {error.strerror}: install Docker Engine with the Compose plugin") from None


def run(host: str, directory: str, arguments: Sequence[str]) -> int:
    """Send the tree to a host, and run an operation there. Return its exit status. Raise DeployFailed."""
    name = secrets.token_hex(4)
    archive, program = f".deploy/{name}.tar", f".deploy/{name}"
    folder = shlex.quote(directory)
    receive = (
        f"mkdir -p {folder}/{program} && cd {folder} && cat >{archive} && "
        f"tar -xf {archive} -C {program} {' '.join(_PROGRAM)}"
    )
    with subprocess.Popen([*_ssh(host), receive], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        # If ssh ends early, its exit status says so, below its own message.
        with suppress(BrokenPipeError), process.stdin, tarfile.open(fileobj=process.stdin, mode="w|") as tar:
            for file in tracked_files(Path.cwd()):
                tar.add(file, recursive=False)
        if process.wait() != 0:
            raise DeployFailed(f"ssh {host}: the files could not be sent (exit status {process.returncode})")
    variables = {
        "PYTHONPATH": program,
        "PYTHONDONTWRITEBYTECODE": "1",
        "DEPLOY_VERSION": version_of(Path.cwd()),
        "DEPLOY_BY": operator(),
    }
    labels = ("IMAGE_VERSION", "IMAGE_REVISION", "IMAGE_CREATED", "IMAGE_SOURCE")
    variables |= {name: os.environ[name] for name in labels if name in os.environ}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    words = shlex.join(["python3", "-m", "ops.deploy", "--unpack", archive, *_without_target(arguments)])
    # The program there is the one that was sent, also while the tree is replaced. It removes both at its end.
    command = f"cd {folder} && env -u DOCKER_HOST -u DOCKER_CONTEXT {settings} {words}"
    # With a terminal, Ctrl-C reaches the program there.
    return subprocess.run([*_ssh(host, terminal=sys.stdin.isatty()), command], check=False).returncode


def _ssh(host: str, *, terminal: bool = False) -> list[str]:
    address, colon, port = host.partition(":")
    return ["ssh", *(["-t"] if terminal else []), *(["-p", port] if colon else []), address]


def _without_target(arguments: Sequence[str]) -> list[str]:
    """Return the command line without --on and --directory."""
    return re.split("\0", re.sub(r"(^|\0)--(on|directory)(=|\0)[^\0]*", "", "\0".join(arguments)).lstrip("\0"))


def tracked_files(root: Path) -> list[str]:
    """Return the files of a tree that git knows, or that it would not ignore; in order."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise DeployFailed(f"git ls-files: {listed.stderr.strip()}")
    return sorted({name for name in listed.stdout.split("\0") if name and (root / name).is_file()})


@contextmanager
def unpacked(archive: str) -> Iterator[None]:
    """Hold the lock of the working directory. If there is an archive, replace the tree by its files.

    Other operations may use the same tree (lock.py keeps them apart if they concern the same stack), but none while it
    is replaced. Raise DeployFailed if one does.
    """
    STATE.mkdir(exist_ok=True)
    try:
        with (STATE / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, (fcntl.LOCK_EX if archive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployFailed(f"another operation runs in {Path.cwd()}: wait until it has ended") from None
            if archive:
                replace_tree(Path.cwd(), Path(archive))
            yield
    finally:
        if archive:
            Path(archive).unlink(missing_ok=True)
            shutil.rmtree(Path(archive).with_suffix(""), ignore_errors=True)


def replace_tree(root: Path, archive: Path) -> None:
    """Replace the files that were sent before by those of an archive. Other files stay: `.env`, `.secrets/`."""
    listing = root / FILES
    before = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DeployFailed(f"{archive}: {name}: is outside of the folder")
        tar.extractall(root, filter="data")
    for name in set(before) - set(names):
        (root / name).unlink(missing_ok=True)
    listing.write_text("\n".join(names) + "\n", encoding="utf-8")
