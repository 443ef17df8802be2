import gc
import io
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import hypothesis
import pytest
from httpx import _config as httpx_config

from app.observability.logging import configure_logging
from app.settings import Settings
from tests.support.docker import check_required_engine, require_engine
from tests.support.stacks import ComposeStack, LocalStack, ProdStack, Stack, build_images
from tests.support.workers import (
    GroupScheduling,
    create_run_directory,
    enter_run_directory,
    is_worker,
    locked,
    publish_groups,
    run_directory,
    turn,
)

pytest_plugins = ["tests.support.fixtures"]

# httpx waits for 5 s by default, and a busy machine may pause for as long. A test about a time-out sets its own.
for _operation in ("connect", "read", "write", "pool"):
    setattr(httpx_config.DEFAULT_TIMEOUT_CONFIG, _operation, 60.0)

# No test depends on the speed of the machine: a busy one is slow to generate data.
hypothesis.settings.register_profile("project", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("project")


_SHARED = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SHARED] = ExitStack()
    if is_worker(config):
        enter_run_directory()
    if config.getoption("numprocesses", None) and not is_worker(config):
        directory = create_run_directory()
        config.add_cleanup(lambda: shutil.rmtree(directory))


def pytest_sessionstart(session: pytest.Session) -> None:
    if not is_worker(session.config):
        check_required_engine()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that share a stack or a module's fixtures in one worker.

    Tests that run alone come last, with their groups: the other workers wait for each of them, and it for them.
    """
    if not is_worker(config):
        return
    groups: dict[str | None, list[pytest.Item]] = {None: []}
    for item in items:
        groups.setdefault(_group(item), []).append(item)
    ungrouped = groups.pop(None)
    publish_groups({item.nodeid: str(name) for name, group in groups.items() for item in group})
    others, last = [each for each in ungrouped if not _is_alone(each)], [each for each in ungrouped if _is_alone(each)]
    first = [group for group in groups.values() if not any(map(_is_alone, group))]
    # Put equal parts of the other tests between the groups, so that mostly one stack is busy.
    parts = max(1, len(first))
    items.clear()
    for number, group in enumerate(first or [[]]):
        items += group + others[number * len(others) // parts : (number + 1) * len(others) // parts]
    for group in groups.values():
        items += group if group not in first else []
    items += last


def _group(item: pytest.Item) -> str | None:
    """Return the name of what the test shares with others, if that is expensive."""
    assert isinstance(item, pytest.Function)
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "stack" in parameters:
        return f"stack-{parameters['stack']}"
    for fixture in ("prod", "replicas", "deployed", "browser", "postgres", "database", "alerting"):
        if fixture in item.fixturenames and item.path.parent.name in ("stack", "fault"):
            return f"{fixture}-{item.path.stem}" if fixture in ("postgres", "database") else fixture
    return None


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run the test next to those of other workers, from its setup to its teardown.

    A pause in between would stop its event loop: a transaction that a fixture has begun runs into the server's limit.
    """
    with nullcontext() if _is_alone(item) else turn(alone=False):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with turn(alone=False) if _is_alone(item) else nullcontext():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test that has the mark `alone` while the other workers wait: not its setup, which may start a stack."""
    with turn(alone=True) if _is_alone(item) else nullcontext():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Stop the stack of a group after its last test: an idle one takes a seventh of two cores."""
    with turn(alone=False) if _is_alone(item) else nullcontext():
        result = yield
        if is_worker(item.config) and (nextitem is None or _group(item) != _group(nextitem)):
            item.config.stash[_SHARED].close()
        return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, object, object]:
    """Collect no garbage while a failure is formatted.

    If a finalizer that formats a traceback runs inside ast.parse(), CPython before 3.11.8 raises "AST constructor
    recursion depth mismatch" (gh-106905), and pytest ends without the failure.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Take what has been imported out of later garbage collections, as a deployed worker does.

    A full collection took up to 0.5 s, as long as some of the deadlines under test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> Iterator[None]:
    """Remove the settings of the caller's shell and .env: no test may reach a configured database.

    FAST_ROUTES stays: `make test-fast-routes-off` sets it.
    """
    saved = dict(os.environ)
    for name in Settings.model_fields.keys() - {"fast_routes"}:
        os.environ.pop(name.upper(), None)
        os.environ.pop(f"{name.upper()}_FILE", None)
    env_file = Settings.model_config["env_file"]
    Settings.model_config["env_file"] = None
    yield
    Settings.model_config["env_file"] = env_file
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def json_log() -> Iterator[Callable[[], str]]:
    """Log as in production during the test. Return a function that returns what has been written."""
    root = logging.getLogger()
    saved = root.handlers[:], root.level
    configure_logging(format="json", level="info")
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    handler.setStream(written)
    yield written.getvalue
    root.handlers[:], root.level = saved


@pytest.fixture(scope="session")
def new_directory() -> Iterator[Callable[[], Path]]:
    """Return a function that creates a directory for an embedded PostgreSQL, whose user has to reach it.

    pytest closes the directory of `tmp_path` to other users whenever another pytest process starts.
    """
    with TemporaryDirectory(prefix="headroom-", ignore_cleanup_errors=True) as parent:
        yield lambda: Path(mkdtemp(dir=parent))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Build the images of both Compose files, once per run."""
    require_engine()
    directory = run_directory() or tmp_path_factory.getbasetemp()
    built = directory / "images-built"
    with locked(directory / "images.lock"):
        if not built.exists():
            build_images()
            built.touch()


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Iterator[ExitStack]:
    """Return the contexts that end after the last test of the group, or with the session if there is one process."""
    with pytestconfig.stash[_SHARED] as contexts:
        yield contexts


@pytest.fixture(scope="session", params=["local", "compose"])
def stack(request: pytest.FixtureRequest, new_directory: Callable[[], Path], shared: ExitStack) -> Stack:
    """Run the whole stack, as local processes and, if there is a Docker engine, in containers."""
    if request.param == "compose":
        request.getfixturevalue("images")
        return shared.enter_context(ComposeStack(f"headroom-test-{os.getpid()}", build=False).running())
    return shared.enter_context(LocalStack(new_directory()).running())


@pytest.fixture(scope="session")
def prod(images: None, tmp_path_factory: pytest.TempPathFactory, shared: ExitStack) -> ProdStack:
    """Run compose.prod.yml with secrets of its own."""
    secrets = tmp_path_factory.mktemp("secrets") / "prod"
    return shared.enter_context(ProdStack(f"headroom-prod-{os.getpid()}", secrets, build=False).running())
