"""squawk, the linter for the SQL of migrations."""

import subprocess
import sys
import tomllib
from pathlib import Path

from alembic.script import Script

from app.database.schema_version import CONTRACTING, kind_of
from app.paths import PROJECT_ROOT
from migrations.kinds import Upgrade

CONFIG = PROJECT_ROOT / ".squawk.toml"
SQUAWK = Path(sys.executable).with_name("squawk")
# What a declared contracting revision is for.
CONTRACTING_RULES = (
    "adding-not-nullable-field",
    "ban-drop-column",
    "ban-drop-table",
    "changing-column-type",
    "renaming-column",
    "renaming-table",
)


def complaints(script: Script) -> list[str]:
    """Return squawk's complaints about upgrade(), one line each.

    A revision excludes rules with a variable: `squawk_exceptions = {"rule": "reason"}`.
    """
    # The rules of the file too: `--exclude` replaces them.
    exceptions = tomllib.loads(CONFIG.read_text())["excluded_rules"]
    exceptions += getattr(script.module, "squawk_exceptions", {})
    if kind_of(script) == CONTRACTING:
        exceptions += CONTRACTING_RULES
    finished = subprocess.run(
        [SQUAWK, "--config", CONFIG, "--reporter", "gcc", f"--exclude={','.join(exceptions)}"],
        input=Upgrade(script).sql,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode not in (0, 1) or (finished.returncode == 1 and not finished.stdout):
        raise RuntimeError(finished.stderr)
    return [line for line in finished.stdout.splitlines() if ": " in line]
