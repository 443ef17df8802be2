"""Run FastAPI's own test suite with and without fast routes, and compare: `make test-fastapi`.

The suite comes from the sdist of the locked FastAPI version, and runs four times: as it is and with asynchronous
operations (`async_plugin.py`), each on plain FastAPI and with fast routes on every application. The outcome of every
test must be the same in both runs of a pair. Exit status 1 if one differs.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from app.paths import PROJECT_ROOT

PLUGINS = Path(__file__).parent
DATA = PROJECT_ROOT / ".data/fastapi-suite"
APP_REQUIREMENTS = PROJECT_ROOT / "requirements/app.txt"
REQUIREMENTS = PROJECT_ROOT / "requirements/fastapi-suite.txt"


def main() -> int:
    """Run the suite four times; return 1 if fast routes make a difference."""
    python = _environment()
    suite = _suite()
    exit_status = 0
    for name, plugins in (("as it is", []), ("asynchronous", ["async_plugin"])):
        plain, _ = _run(python, suite, plugins)
        fast, served = _run(python, suite, [*plugins, "fast_routes_plugin"])
        different = sorted(test for test in plain.keys() | fast.keys() if plain.get(test) != fast.get(test))
        print(f"\nFastAPI {version('fastapi')}'s suite, {name}: {_counts(plain)}; with fast routes: {_counts(fast)}")
        print(served)
        for test in different:
            print(f"DIFFERENT: {test}: {plain.get(test)} on plain FastAPI, {fast.get(test)} with fast routes")
        if different or not fast:
            exit_status = 1
    return exit_status


def _environment() -> Path:
    """Return the Python of a virtual environment with the suite's dependencies, in the locked versions."""
    folder = DATA / "venv"
    python = folder / "bin/python"
    done = folder / ".requirements"
    if not done.exists() or done.read_bytes() != REQUIREMENTS.read_bytes():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", REQUIREMENTS], check=True
        )
        done.write_bytes(REQUIREMENTS.read_bytes())
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


def _run(python: Path, suite: Path, plugins: list[str]) -> tuple[dict[str, str], str]:
    """Return the outcome of every test by its id, and what fast routes say about the requests."""
    outcomes = DATA / "outcomes.json"
    outcomes.unlink(missing_ok=True)
    command: list[str | Path] = [python, "-m", "pytest", "tests", "-q", "--tb=short", "-pno:cacheprovider"]
    command += ["--numprocesses=auto", "--dist=loadfile"]
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
    (DATA / f"{'-'.join(plugins) or 'plain'}.log").write_text(finished.stdout)
    found: dict[str, str] = json.loads(outcomes.read_text())
    served = re.search(r"fast routes served .*", finished.stdout)
    return found, served.group() if served else ""


def _counts(outcomes: dict[str, str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(outcomes.values()).items()))


if __name__ == "__main__":
    sys.exit(main())
