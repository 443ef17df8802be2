"""Where the project's files are."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).parent.parent
GUNICORN_CONFIG = PROJECT_ROOT / "ops/gunicorn/gunicorn.conf.py"
POSTGRES_ROLES = PROJECT_ROOT / "ops/postgres/roles.sql"
PYPROJECT = PROJECT_ROOT / "pyproject.toml"
