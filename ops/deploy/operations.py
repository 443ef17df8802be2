"""The steps of a deploy and of a rollback, in their order."""

import json
import os
import subprocess
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from ops.deploy import releases
from ops.deploy.errors import CommandFailed, DeployFailed, Interrupted
from ops.deploy.releases import Model, Release
from ops.deploy.rollout import POLL_SECONDS, Limits, Rollout
from ops.deploy.stack import Replica, Stack, env_file, names_in_compose_files
from ops.deploy.timeline import Timeline

# As in app/settings.py.
MISSPELLED = 0.9
# In which the server and PgBouncer must report their limits.
LIMITS_SECONDS = 15
_ITSELF, _PROXY = "http://127.0.0.1:8000", "https://proxy:8443"
# Sent from a container of the API. Three attempts: an overloaded replica answers 503.
_SMOKE = """
import ssl, sys, time, urllib.request
context = ssl._create_unverified_context()
for base in sys.argv[2:]:
    for attempt in (1, 2, 3):
        try:
            with urllib.request.urlopen(base + sys.argv[1], timeout=10, context=context) as answer:
                answer.read()
            break
        except OSError as error:
            if attempt == 3:
                sys.exit(f"GET {base}{sys.argv[1]}: {error}")
            time.sleep(1)
"""


def deploy(stack: Stack, timeline: Timeline, image: str = "") -> None:
    """Deploy the tree, or an image that was built elsewhere, with the settings of now. Raise DeployFailed."""
    check_secrets(stack.model)
    check_names(stack)
    check_project(stack)
    before = release_before(stack, timeline)
    if image:
        if not stack.has_image(image):
            stack.pull(image)
        version, built = releases.valid_version(image.rpartition("/")[2].rpartition(":")[2]), ""
    else:
        version = version_of(stack.root)
        timeline.add("build", f"{version}; without a cache it takes some minutes")
        image = built = stack.build(version)
    timeline.add("build", image)
    release = make_release(stack, version=version, image=image, model=releases.reduced(stack.model), built=built)
    timeline.facts |= {"release": release.number, "version": version}

    def prepare() -> None:
        start_services(stack, timeline, release)
        check_budget(stack, timeline, release)
        migrate(stack, timeline, release)
        if before is not None:  # otherwise there is nothing to protect
            try_out(stack, timeline, release)

    roll_out(stack, timeline, release, before, prepare)
    for name in stack.outdated_services():
        timeline.add("notice", f"the definition of {name} has changed; deploys do not replace it (docs/deploying.md)")


def rollback(stack: Stack, timeline: Timeline, to: str = "") -> None:
    """Go back to the release before, or to the one with the number or version `to`. Raise DeployFailed."""
    current = stack.current()
    if current is None:
        raise DeployFailed("no deploy has succeeded yet, so there is no release to go back to")
    release = _target(stack.releases(), current, to)
    timeline.facts |= {"release": release.number, "version": release.version}

    def prepare() -> None:
        try:
            stack.run(release, "api", "headroom", "schema")
        except CommandFailed as error:
            raise DeployFailed(f"{release} may not run on the schema: {error}") from None
        timeline.add("schema", f"{release} may run on it")
        check_budget(stack, timeline, release)

    roll_out(stack, timeline, release, current, prepare, is_rollback=True)


def _target(kept: list[Release], current: Release, to: str) -> Release:
    if to:
        found = [release for release in kept if to in (str(release.number), release.version)]
    else:
        found = [release for release in kept if release.number == current.before]
    if not found:
        wanted = f"release {to}" if to else f"the release before {current}"
        others = [f"{release.number} ({release.version})" for release in kept if release.number != current.number]
        raise DeployFailed(f"the images of {wanted} are not there; others that are kept: {', '.join(others) or 'none'}")
    if found[-1].number == current.number:
        raise DeployFailed(f"{current} serves already")
    return found[-1]


# --- the steps


def check_secrets(model: Model) -> None:
    """Raise DeployFailed if a secret's file is missing or empty."""
    for secret in model.get("secrets", {}).values():
        file = Path(secret.get("file", ""))
        if secret.get("file") and not (file.is_file() and file.stat().st_size):
            raise DeployFailed(f"the secret {file} is missing: make secrets")


def check_names(stack: Stack) -> None:
    """Raise DeployFailed for a name in `.env` that is nearly a variable's: Compose would ignore it."""
    given = env_file(stack.root)
    known = names_in_compose_files(stack.root)
    without_underscores = {name.replace("_", ""): name for name in known}
    for name in given:
        if name in known or name.startswith("COMPOSE_"):
            continue
        meant = without_underscores.get(name.upper().replace("_", ""))
        meant = meant or next(iter(get_close_matches(name.upper(), known, n=1, cutoff=MISSPELLED)), None)
        if meant and meant not in given:
            raise DeployFailed(f".env: {name} is not a variable of the Compose files; did you mean {meant}?")


def check_project(stack: Stack) -> None:
    """Raise DeployFailed if the installation has another project: this one would be a second stack."""
    if former := stack.project_of_before():
        raise DeployFailed(
            f"{stack.project} has no containers, but {former} has those of an earlier version of this stack."
            f" Nothing was started. Set COMPOSE_PROJECT_NAME={former} in .env to deploy to it with its data, or"
            f" COMPOSE_PROJECT_NAME={stack.project} for a second stack with an empty database"
        )


def check_surge(release: Release) -> None:
    """Raise DeployFailed if no replica may be started before another one stops."""
    if release.surge < 1:
        raise DeployFailed("API_SURGE is 0: a deploy needs room for one more replica; set it to 1 or more")


def release_before(stack: Stack, timeline: Timeline) -> Release | None:
    """Return the release that serves; None before the first deploy.

    Replicas that Compose started without a deploy become a release, so that a deploy can be undone.
    """
    current = stack.current()
    if current is not None:
        return current
    running = [replica for replica in stack.replicas() if replica.status == "running"]
    if not running:
        return None
    [container] = json.loads(stack.docker("inspect", running[0].id))
    model = releases.reduced(stack.model)
    service = model["services"]["api"]
    environment = dict(variable.split("=", 1) for variable in container["Config"]["Env"])
    model["services"]["api"] = service | {
        "environment": environment,
        "deploy": service["deploy"] | {"replicas": len(running)},
    }
    image = f"{releases.repository(stack.project)}:adopted"
    stack.docker("tag", container["Image"], image)
    release = make_release(stack, version="adopted", image=image, model=model, number=0)
    stack.remove_image(image)
    timeline.add("adopt", f"{len(running)} replicas that no deploy had started")
    return release


def make_release(
    stack: Stack, *, version: str, image: str, model: Model, built: str = "", number: int | None = None
) -> Release:
    """Make the image of a release, with the next number. Raise DeployFailed."""
    current = stack.current()
    if number is None:
        number = next_number(stack)
    release = Release(stack.project, number, version, model, built, current.number if current else 0)
    check_surge(release)
    stack.label(release, image)
    return release


def next_number(stack: Stack) -> int:
    """Return the number of the next release."""
    numbers = [release.number for release in stack.releases()] + [replica.release for replica in stack.replicas()]
    return max(numbers, default=0) + 1


def start_services(stack: Stack, timeline: Timeline, release: Release) -> None:
    """Start the services that do not run, and wait until they are healthy. Raise DeployFailed."""
    missing = stack.missing_services()
    if not missing:
        return
    stack.start_services(missing, release)
    for name in missing:
        # Without a replica, the exporter and the proxy are healthy too.
        wait_until_healthy(stack, name)
    timeline.add("services", f"started {', '.join(missing)}")


def wait_until_healthy(stack: Stack, service: str) -> None:
    """Wait until the container of a service is healthy. Raise DeployFailed."""
    deadline = time.monotonic() + limits_of(stack).ready
    while True:
        container = next(iter(stack.containers(service, stopped=True)), None)
        state = stack.health(container) if container else "missing"
        if state in ("healthy", "running", "done"):
            return
        if time.monotonic() > deadline:
            raise DeployFailed(f"the service {service} is {state}", stack.logs(container) if container else "")
        time.sleep(POLL_SECONDS)


def try_out(stack: Stack, timeline: Timeline, release: Release) -> None:
    """Request DEPLOY_SMOKE_PATH from a container of the release that no client reaches. Raise DeployFailed."""
    if len(stack.replicas()) >= release.replicas + release.surge:
        timeline.add("try", "left out: API_REPLICAS is lower than before, or a deploy was killed, so there is no room")
        return
    deadline = time.monotonic() + limits_of(stack).ready
    path = release.smoke_path
    with stack.trial(release) as container:
        while (state := stack.health(container)) not in ("healthy", "running"):
            if state in ("done", "dead") or state.startswith("exited") or time.monotonic() > deadline:
                raise DeployFailed(f"{release} does not start: its container is {state}", stack.logs(container))
            time.sleep(POLL_SECONDS)
        try:
            stack.execute(container, "python", "-c", _SMOKE, path, _ITSELF)
        except CommandFailed as error:
            message = f"{release} does not answer {path} (DEPLOY_SMOKE_PATH) with 200: {error}"
            raise DeployFailed(message, stack.logs(container)) from None
    timeline.add("try", f"{path}: a container that no client reaches answers")


def check_budget(stack: Stack, timeline: Timeline, release: Release) -> None:
    """Check the connection budget of the release, with its surge. Raise DeployFailed if it is exceeded.

    A PgBouncer that has just started cannot look up passwords yet. Without an answer, the limits are assumed ones: they
    are queried again for up to LIMITS_SECONDS.
    """
    deadline = time.monotonic() + LIMITS_SECONDS
    while True:
        failed: CommandFailed | None = None
        try:
            output = stack.run(release, "api", "headroom", "budget", "--json")
        except CommandFailed as error:
            failed, output = error, error.output
        budget = json.loads(output) if output.startswith("{") else {}
        remarks = budget.get("remarks", [])
        if not remarks or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    if failed and not budget:
        raise DeployFailed(f"{release} cannot compute its connection budget: {failed}", failed.details) from None
    if failed:
        reason = "; ".join([str(failed), *remarks])
        raise DeployFailed(f"the connection budget of {release} does not allow it: {reason}", failed.details) from None
    shown = [f"{check['demand']} of {check['supply']} {check['name']}" for check in budget["checks"]]
    timeline.add("budget", "; ".join([", ".join(shown), f"{release.replicas} + {release.surge} replicas", *remarks]))


def migrate(stack: Stack, timeline: Timeline, release: Release) -> None:
    """Upgrade the schema, unless the running release could not work on the new one. Raise DeployFailed."""
    schema = _schema_of(lambda: stack.run(release, "api", "headroom", "schema", "--json"))
    if not schema["pending"] and schema["may_run"]:
        timeline.add("migrate", f"not necessary: {schema['state']}")
        return
    running = next((replica for replica in stack.replicas() if replica.runs), None)
    if running is not None:
        code = _schema_of(lambda: stack.execute(running.id, "headroom", "schema", "--json"))["code"]
        _check_old_code(schema, code)
    try:
        timeline.facts["migration"] = stack.run(release, "migrate")
    except CommandFailed as error:
        raise DeployFailed(f"the migration failed: {error}", error.details) from None
    timeline.add("migrate", ", ".join(schema["pending"]))


def _schema_of(command: Callable[[], str]) -> dict[str, Any]:
    """Return the answer of `headroom schema --json`, which exits with 1 if the release may not run on it."""
    try:
        return dict(json.loads(command())) | {"may_run": True}
    except CommandFailed as error:
        if not error.output.startswith("{"):
            raise
        return dict(json.loads(error.output)) | {"may_run": False}


def _check_old_code(schema: dict[str, Any], code: list[str]) -> None:
    """Raise DeployFailed if the running code may not run after the pending revisions."""
    order = schema.get("revisions", [])  # an earlier version does not show it
    needed = schema.get("oldest_after_upgrade")
    if needed in order and any(each in order and order.index(each) < order.index(needed) for each in code):
        raise DeployFailed(
            f"the running release has revision {', '.join(code)} and could not work after the migration, which needs "
            f"code of revision {needed} or newer: deploy such a release first"
        )


def check_replica(stack: Stack, timeline: Timeline, release: Release, replica: Replica) -> None:
    """Send a request to a new replica and one through the proxy. Raise DeployFailed if one of them fails."""
    path = release.smoke_path
    try:
        stack.execute(replica.id, "python", "-c", _SMOKE, path, _ITSELF, _PROXY)
    except CommandFailed as error:
        message = f"replica {replica.name} does not answer {path} (DEPLOY_SMOKE_PATH) with 200: {error}"
        raise DeployFailed(message, stack.logs(replica.id)) from None
    timeline.add("request", f"{path}: {replica.name} and the proxy answer")


def limits_of(stack: Stack) -> Limits:
    """Return the time limits of the Compose file. Raise DeployFailed if one is not a number."""
    own = stack.model.get("x-deploy", {})
    try:
        int(own.get("keep", 5))
        return Limits(ready=float(own.get("ready_seconds", 120)), settle=float(own.get("settle_seconds", 90)))
    except ValueError as error:
        raise DeployFailed(f"DEPLOY_READY_SECONDS, DEPLOY_SETTLE_SECONDS, DEPLOY_KEEP: {error}") from None


def roll_out(
    stack: Stack,
    timeline: Timeline,
    release: Release,
    before: Release | None,
    prepare: Callable[[], None] = lambda: None,
    *,
    restore: Callable[[], None] = lambda: None,
    serves: Callable[[], None] = lambda: None,
    is_rollback: bool = False,
) -> None:
    """Prepare, and replace the replicas; go back to the release `before` if that fails. Raise DeployFailed.

    `restore` is called first if they must go back: replicas of the release before may start again. `serves` is called
    when all replicas are of the new release: a later failure does not change them back.
    A rollback has no watch: its release has served before, and the one that is replaced should go.
    """
    limits = limits_of(stack)
    rollout = Rollout(stack, timeline, replace(limits, settle=0) if is_rollback else limits)
    began = False
    try:
        prepare()
        began = True
        rollout.to(release, partial(check_replica, stack, timeline, release))
        serves()
    except (Exception, Interrupted) as error:
        # Also after a full disk or a defect of this program: replicas of both releases must not stay.
        reason = "interrupted" if isinstance(error, Interrupted) else str(error) or repr(error)
        details = error.details if isinstance(error, DeployFailed) else ""
        timeline.add("failed", reason)
        if before is None:
            if not began:
                discard(stack, release)
            raise DeployFailed(f"{reason}. No release serves: nothing ran before", details) from error
        restore()
        if began:
            _go_back(timeline, rollout, before, reason)
        stack.set_current(before)
        if not is_rollback:
            discard(stack, release)
        raise DeployFailed(f"{reason}. {before} serves as before", details) from error
    stack.set_current(release)
    timeline.add("done", f"{release} serves")
    if "exporter" in release.model["services"]:
        try:
            stack.replace(release, "exporter")
            wait_until_healthy(stack, "exporter")
        except DeployFailed as error:
            raise DeployFailed(f"{release} serves, but not the exporter: {error}", error.details) from None
        timeline.add("exporter", "replaced")
    prune(stack)


def _go_back(timeline: Timeline, rollout: Rollout, before: Release, reason: str) -> None:
    try:
        rollout.back_to(before)
    except DeployFailed as error:
        message = f"{reason}; and going back to {before} failed: {error}. Look at docker compose ps and logs"
        raise DeployFailed(message, error.details) from None
    timeline.add("undone", f"{before} serves")


def discard(stack: Stack, release: Release) -> None:
    """Remove the images of a release that does not serve."""
    stack.remove_image(release.image)
    if release.built and release.built not in {other.built for other in stack.releases()}:
        stack.remove_image(release.built)


def prune(stack: Stack) -> None:
    """Remove the images of releases that need not be kept."""
    keep = int(stack.model.get("x-deploy", {}).get("keep", 5))
    for release in releases.superfluous(stack.releases(), stack.current(), keep):
        discard(stack, release)


def version_of(root: Path) -> str:
    """Return the version and the commit of a tree; DEPLOY_VERSION names those of a tree that was sent here."""
    if given := os.environ.get("DEPLOY_VERSION"):
        return releases.valid_version(given)
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    try:
        git = partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
        commit = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"{version}-{datetime.now(UTC):%Y%m%d%H%M%S}"
    return f"{version}-{commit}{'-dirty' if changed else ''}"
