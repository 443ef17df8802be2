"""Which packages a fresh interpreter loads for a module: more than import-linter sees."""

import re
import subprocess
import sys

import pytest

from app.paths import PROJECT_ROOT

# Packages of the platform, and the folders of their tests.
PLATFORM = ("budget", "database", "development", "exporter", "observability", "pagination", "server", "web")
MODULES = [
    "app.budget.check",
    "app.database.schema_version",
    "app.pagination.page",
    *(
        f"app.domains.{path.parent.name}.{path.stem}"
        for name in ("repository.py", "service.py")
        for path in sorted((PROJECT_ROOT / "app/domains").glob(f"*/{name}"))
    ),
]


@pytest.mark.parametrize("module", MODULES)
def test_module_below_the_web_layer_loads_no_web_framework(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert "sqlalchemy" in loaded
    assert {"fastapi", "starlette"}.isdisjoint(loaded)


def test_worker_module_does_not_load_prometheus_client() -> None:
    """Gunicorn's configuration must set the directory first: prometheus_client reads its name at import."""
    program = "import sys, app.server.startup, app.server.worker; print('prometheus_client' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "False"


def test_programs_of_production_load_no_development_helpers() -> None:
    modules = "app.main, app.cli.main, app.exporter.app, app.server.startup, app.server.worker"
    program = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert "app.main" in loaded
    assert [name for name in loaded if name.startswith("app.development")] == []


@pytest.mark.parametrize("package", PLATFORM)
def test_platform_tests_import_no_domain(package: str) -> None:
    """A service changes or removes its domains. tests/support/contacts.py is the domain of these tests."""
    files = [*(PROJECT_ROOT / "tests").glob(f"*/{package}/**/*.py")]

    assert files
    imported = re.compile(r"^(from|import) app\.(domains|models)\b", re.MULTILINE)
    assert [file.name for file in files if imported.search(file.read_text())] == []
