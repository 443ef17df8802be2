"""Run FastAPI's own test suite with fast routes, and compare with plain FastAPI: `make test-fastapi`.

The suite comes from the sdist of the locked FastAPI version, and runs as it is and with asynchronous operations
(`async_plugin.py`), each with fast routes on every application. The outcome of every test must be the same as on plain
FastAPI. Exit status 1 if one differs. The tests of `tests/instrumentation` follow, in the same environment.

`plain.json` has a digest of the outcomes on plain FastAPI, for a Python version, the locked packages and the plugins.
If the digest is that of the outcomes with fast routes, plain FastAPI need not run. If it is another, or if there is
none, the suite also runs on plain FastAPI, and the outcomes are compared test by test. `--record` writes the digests.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from app.paths import PROJECT_ROOT

PLUGINS = Path(__file__).parent
PLAIN_OUTCOMES = PLUGINS / "plain.json"
DATA = PROJECT_ROOT / ".data/fastapi-suite"
APP_REQUIREMENTS = PROJECT_ROOT / "requirements/app.txt"
REQUIREMENTS = PROJECT_ROOT / "requirements/fastapi-suite.txt"
VARIANTS: Mapping[str, tuple[str, ...]] = {"as it is": (), "asynchronous": ("async_plugin",)}

# A lower share than was measured (0.76): the suite has many applications that plain FastAPI must serve.
LEAST_SHARE_ON_THE_FAST_PATH = 0.7


def main() -> int:
    """Run the suite and the tests of instrumentations; return 1 if fast routes make a difference."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="run plain FastAPI only, and write plain.json")
    is_recording = parser.parse_args().record
    python = _environment()
    suite = _suite()
    if is_recording:
        _record(python, suite)
        return 0
    failed = [name for name in VARIANTS if not _is_same(python, suite, name)]
    return 1 if _instrumentation_fails(python) or failed else 0


def _is_same(python: Path, suite: Path, name: str) -> bool:
    """Run a variant of the suite. Return True if every test has the same outcome with and without fast routes."""
    plugins = VARIANTS[name]
    expected = _recorded().get(_key(name))
    fast, served = _run(python, suite, (*plugins, "fast_routes_plugin"), expected)
    print(f"\nFastAPI {version('fastapi')}'s suite, {name}, with fast routes: {_counts(fast)}; {served}", flush=True)
    numbers = [int(number) for number in re.findall(r"\d+", served)]  # fast requests, all requests
    if len(numbers) != 2 or numbers[0] < LEAST_SHARE_ON_THE_FAST_PATH * numbers[1]:
        print("the comparison shows nothing: too few requests took the fast path", flush=True)
        return False
    if fast and expected == _digest(fast):
        print("every outcome is that of plain FastAPI, as recorded in plain.json", flush=True)
        return True
    plain, _ = _run(python, suite, plugins)
    print(f"on plain FastAPI: {_counts(plain)}", flush=True)
    different = sorted(test for test in plain.keys() | fast.keys() if plain.get(test) != fast.get(test))
    for test in different:
        print(f"DIFFERENT: {test}: {plain.get(test)} on plain FastAPI, {fast.get(test)} with fast routes", flush=True)
    return not different and bool(fast)


def _instrumentation_fails(python: Path) -> bool:
    """Run the tests of instrumentations. The project's own configuration of pytest needs other packages."""
    print("\ninstrumentations:", flush=True)
    command: list[str | Path] = [python, "-m", "pytest", "tests/instrumentation", "-q", "--tb=short"]
    command += [f"--config-file={os.devnull}", f"--rootdir={PROJECT_ROOT}", "--noconftest", "-pno:cacheprovider"]
    command += ["--numprocesses=auto"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    return subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=False).returncode != 0


def _record(python: Path, suite: Path) -> None:
    """Write the digests of the outcomes on plain FastAPI. Drop those of other packages and plugins."""
    locked = _locked()
    recorded = {key: digest for key, digest in _recorded().items() if key.endswith(locked)}
    for name, plugins in VARIANTS.items():
        plain, _ = _run(python, suite, plugins)
        print(f"FastAPI {version('fastapi')}'s suite, {name}, on plain FastAPI: {_counts(plain)}", flush=True)
        recorded[_key(name)] = _digest(plain)
    PLAIN_OUTCOMES.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")


def _recorded() -> dict[str, str]:
    recorded: dict[str, str] = json.loads(PLAIN_OUTCOMES.read_text()) if PLAIN_OUTCOMES.exists() else {}
    return recorded


def _key(name: str) -> str:
    """Return what the outcomes on plain FastAPI depend on."""
    return f"{name}, Python {sys.version_info.major}.{sys.version_info.minor}, {sys.platform}, {_locked()}"


def _locked() -> str:
    # Without comments: an adopted project has another name in them.
    packages = [line for line in REQUIREMENTS.read_bytes().splitlines() if not line.lstrip().startswith(b"#")]
    plugins = [(PLUGINS / name).read_bytes() for name in ("async_plugin.py", "outcomes_plugin.py")]
    return sha256(b"\n".join([*packages, *plugins])).hexdigest()[:16]


def _digest(outcomes: Mapping[str, str]) -> str:
    return sha256(json.dumps(outcomes, sort_keys=True).encode()).hexdigest()


def _environment() -> Path:
    """Return the Python of a virtual environment with the suite's dependencies, in the locked versions."""
    folder = DATA / "venv"
    python = folder / "bin/python"
    done = folder / ".requirements"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text()}"
    if not done.exists() or done.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", REQUIREMENTS], check=True
        )
        done.write_text(wanted)
    return python


def _suite() -> Path:
    """Return the folder of FastAPI's sdist, downloaded with the hash of the lock file."""
    fastapi = f"fastapi-{version('fastapi')}"
    if not (DATA / fastapi).exists():
        # The lock file's entry: the name with its version, and the hashes on the lines after it.
        entry = re.search(r"^fastapi==[^\\\n]*(?:\\\n[^\\\n]*)+", APP_REQUIREMENTS.read_text(), re.MULTILINE)
        assert entry is not None
        (DATA / "fastapi.txt").write_text(entry.group() + "\n")
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "fastapi", "--require-hashes"]
        subprocess.run(
            [sys.executable, "-m", *command, "--requirement", DATA / "fastapi.txt", "--dest", DATA], check=True
        )
        with tarfile.open(DATA / f"{fastapi}.tar.gz") as archive:
            archive.extractall(DATA, filter="data")
    return DATA / fastapi


def _run(
    python: Path, suite: Path, plugins: tuple[str, ...], expected: str | None = None
) -> tuple[dict[str, str], str]:
    """Return the outcome of every test by its id, and what fast routes say about the requests.

    Tests that fail run once more, alone: some have deadlines that a busy machine misses. Not if the outcomes have the
    `expected` digest.
    """
    found, output = _pytest(python, suite, plugins, ["tests", "--numprocesses=auto", "--dist=loadfile"])
    (DATA / f"{'-'.join(plugins) or 'plain'}.log").write_text(output)
    failed = [test for test, outcome in found.items() if outcome in ("failed", "error")]
    if failed and _digest(found) != expected:
        found |= _pytest(python, suite, plugins, failed)[0]
    served = re.search(r"fast routes served .*", output)
    return found, served.group() if served else ""


def _pytest(python: Path, suite: Path, plugins: tuple[str, ...], tests: list[str]) -> tuple[dict[str, str], str]:
    """Return the outcome of every test by its id, and pytest's output."""
    outcomes = DATA / "outcomes.json"
    outcomes.unlink(missing_ok=True)
    command: list[str | Path] = [
        python,
        "-m",
        "pytest",
        *tests,
        "-q",
        "--tb=short",
        "-pno:cacheprovider",
        "--timeout=300",
    ]
    command += [f"-p{plugin}" for plugin in ("outcomes_plugin", *plugins)]
    finished = subprocess.run(
        command,
        cwd=suite,
        env=os.environ
        | {
            # The suite first: its package is called `tests`, too.
            "PYTHONPATH": os.pathsep.join(map(str, (suite / "docs_src", suite, PLUGINS, PROJECT_ROOT))),
            "PYTHONDONTWRITEBYTECODE": "1",  # the rewritten modules must not be cached
            "FASTAPI_SUITE": str(suite),
            "OUTCOMES": str(outcomes),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not outcomes.exists():
        sys.exit(f"FastAPI's suite did not run:\n{finished.stdout[-5000:]}")
    found: dict[str, str] = json.loads(outcomes.read_text())
    return found, finished.stdout


def _counts(outcomes: Mapping[str, str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(outcomes.values()).items()))


if __name__ == "__main__":
    sys.exit(main())
