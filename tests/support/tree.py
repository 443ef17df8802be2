"""A copy of the project's files, for programs that change them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from app.paths import PROJECT_ROOT

# What the programs and the tests need. The rest is large, or is made by commands.
FOLDERS = ("app", "migrations", "ops", "tests", "pyproject.toml")


def copy_tree(target: Path, folders: Iterable[str] = FOLDERS) -> Path:
    """Copy the folders and files into the directory. Return it."""
    for name in folders:
        if (PROJECT_ROOT / name).is_dir():
            shutil.copytree(PROJECT_ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_ROOT / name, target / name)
    return target


def run_in(root: Path, program: str, *arguments: str) -> str:
    """Run `python`, or a program of its environment, on the modules of the copy. Return its output, or fail with it."""
    run = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{program} {' '.join(arguments)}\n{run.stdout}{run.stderr}"
    return run.stdout
