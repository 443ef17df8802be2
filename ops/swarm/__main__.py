"""The command line: `python3 -m ops.swarm deploy`, which is `make deploy to=swarm`, and what the Makefile calls."""

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ops.deploy import interrupts
from ops.deploy.timeline import Timeline, log_file
from ops.swarm import checks, releases
from ops.swarm.deploy import Deployment, load
from ops.swarm.docker import Docker, run
from ops.swarm.errors import SwarmError
from ops.swarm.stack import Model, Stack, content_tag, render

ROOT = Path(__file__).resolve().parents[2]
FILE, OVERRIDE = "compose.prod.yml", "compose.swarm.yml"


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Return its exit status: 0, 1 if the operation failed, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    interrupts.install()
    try:
        status: int = options.run(options)
    except (SwarmError, OSError) as error:
        details = getattr(error, "details", "")
        print(details, f"swarm: {error}", sep="\n" if details else "", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("swarm: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m ops.swarm", description=__doc__)
    parser.add_argument("--stack", default="headroom", help="name of the stack (default: headroom)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, summary: str, run: object) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    command("render", "print the stack, without the contents of its secrets", _render)
    for_load = command("load", "build the images, and copy them to machines, if there is no registry", _load)
    for_load.add_argument("hosts", nargs="+", help="Docker Engines, for example ssh://node2")
    command("push", "build the images, and push them to IMAGE_REGISTRY", _push)
    for name, summary, function in (
        ("deploy", "deploy this version; undo it if it fails", _deploy),
        ("rollback", "deploy an earlier release again", _rollback),
    ):
        added = command(name, summary, function)
        added.add_argument("--within", type=float, default=600, help="limit of each wait in seconds (default: 600)")
        added.add_argument("--data", action="store_true", help="replace PostgreSQL and PgBouncer too, if they differ")
        added.add_argument("--url", help="send the request of the verification there, not to each machine's proxy")
        if name == "deploy":
            added.add_argument("--no-build", action="store_true", help="use the images that the machines have")
            added.add_argument("--hosts", nargs="+", default=[], metavar="HOST", help="copy the images there")
        else:
            added.add_argument("--to", type=int, help="number of a release (default: the last one of another version)")
    command("history", "list the releases", _history)
    return parser


def _render(options: argparse.Namespace) -> int:
    print(json.dumps(_stack(options).document, indent=2))
    return 0


def _load(options: argparse.Namespace) -> int:
    print(*_bring_images(options, _stack(options)), sep="\n")
    return 0


def _push(options: argparse.Namespace) -> int:
    stack = _stack(options)
    if not stack.has_registry:
        raise SwarmError("IMAGE_REGISTRY: must be set, with a slash at its end, for example registry.example.com/team/")
    print(*_bring_images(options, stack), sep="\n")
    return 0


def _bring_images(options: argparse.Namespace, stack: Stack) -> list[str]:
    """Build the images of the project, and copy or push them to the machines. Return what was done for each."""
    checks.version_of(stack)
    built = sorted(stack.built)
    _run_compose(options, "build", "--quiet", *built)
    if hosts := getattr(options, "hosts", []):
        return list(load(Docker(options.stack, ROOT), stack, hosts))
    if stack.has_registry:
        _run_compose(options, "push", "--quiet", *built)
        return ["built, and pushed to the registry"]
    return ["built; without a registry, other machines need hosts="]


def _run_compose(options: argparse.Namespace, *arguments: str) -> None:
    command = [*_compose(options), *arguments]
    if subprocess.run(command, cwd=ROOT, check=False, env=_environment(options)).returncode:
        raise SwarmError(f"docker compose {arguments[0]} failed")


def _deploy(options: argparse.Namespace) -> int:
    stack = _stack(options)
    images = None if options.no_build else partial(_bring_images, options, stack)
    with _kept("deploy") as timeline:
        _deployment(options, timeline, stack).deploy(stack, data=options.data, images=images)
    return 0


def _rollback(options: argparse.Namespace) -> int:
    with _kept("rollback") as timeline:
        _deployment(options, timeline, None).rollback(options.to, data=options.data)
    return 0


@contextmanager
def _kept(operation: str) -> Iterator[Timeline]:
    """Return the timeline of an operation. Its line goes into the same log as those of one machine."""
    timeline = Timeline(operation, log_file(ROOT))
    timeline.facts["to"] = "swarm"
    with timeline.kept():
        yield timeline


def _history(options: argparse.Namespace) -> int:
    docker = Docker(options.stack, ROOT)
    docker.require_manager()
    for release in releases.read_all(docker):
        print(f"{release.number:>4}  {release.time}  {release.version:<28}  {release.remark}, {release.by}")
    return 0


def _deployment(options: argparse.Namespace, timeline: Timeline, stack: Stack | None) -> Deployment:
    docker = Docker(options.stack, ROOT)

    def smoke(deployed: Stack) -> str | None:
        if options.url:
            return checks.url_problem(options.url)
        return _problem_of_proxies(docker, deployed, stack)

    return Deployment(docker, timeline, within=options.within, smoke=smoke)


def _problem_of_proxies(docker: Docker, deployed: Stack, stack: Stack | None) -> str | None:
    proxy = deployed.services.get("proxy")
    if proxy is None:
        return None
    certificate = stack and stack.mounted("proxy", "/run/secrets/tls_certificate")
    request = checks.Smoke(certificate.decode() if certificate else None, checks.https_port(proxy))
    running = {task.node for task in docker.tasks("proxy") if task.state == "Running"}
    problems = [
        f"{node.name} ({node.address}): {problem}"
        for node in docker.nodes()
        if node.name in running and (problem := request.problem(node.address))
    ]
    return "; ".join(problems) or (None if running else "no proxy runs")


def _compose(options: argparse.Namespace) -> list[str]:
    files = [part for file in compose_files(_variable("COMPOSE_FILE")) for part in ("--file", file)]
    return ["docker", "compose", "--project-name", options.stack, *files]


def compose_files(given: str | None) -> list[str]:
    """Return the Compose files: those of COMPOSE_FILE, with the one of Swarm after the one of production."""
    files = given.split(":") if given else [FILE]
    if FILE not in files:
        raise SwarmError(f"COMPOSE_FILE: must contain {FILE}, got {given}")
    rest = [file for file in files if file not in (FILE, OVERRIDE)]
    return [FILE, OVERRIDE, *rest]


def _variable(name: str) -> str | None:
    """Return a variable of the environment or of .env, as Compose reads them."""
    if os.environ.get(name):
        return os.environ[name]
    file = ROOT / ".env"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    values = [line.partition("=")[2].strip().strip("\"'") for line in lines if line.startswith(f"{name}=")]
    return values[-1] if values else None


def _stack(options: argparse.Namespace) -> Stack:
    """Return the stack of the Compose files, with the variables of the environment and of .env."""
    return render(_model(options, _environment(options)), ROOT)


def _model(options: argparse.Namespace, environment: Mapping[str, str]) -> Model:
    shown = run([*_compose(options), "config", "--format", "json"], input=None, environment=environment)
    if shown.returncode:
        raise SwarmError(f"docker compose config: {shown.stderr.decode(errors='replace').strip()}")
    model: Model = json.loads(shown.stdout)
    return model


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of Compose, with the tags of images that are not set.

    The tag of the API's image is the version and the commit. That of an image with the tag `content` depends on the
    folder from which it is built.
    """
    environment = dict(os.environ)
    if not _variable("IMAGE_TAG"):
        environment["IMAGE_TAG"] = _version()
    services = _model(options, environment)["services"]
    tags = {
        f"{name.upper()}_TAG": content_tag(service["build"])
        for name, service in services.items()
        if service.get("build") and service["image"].endswith(":content")
    }
    return environment | tags


def _version() -> str:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    commit = run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], input=None)
    changed = run(["git", "-C", str(ROOT), "status", "--porcelain"], input=None)
    if commit.returncode or changed.stdout:
        raise SwarmError("IMAGE_TAG: must be set, because this tree is not the tree of a commit")
    return f"{version}-{commit.stdout.decode().strip()}"


if __name__ == "__main__":
    sys.exit(main())
