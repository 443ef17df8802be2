"""What `make domain` writes passes every check at once."""

from pathlib import Path

from tests.support.tree import copy_tree, run_in

PYTEST = ("-q", "-n0", "-p", "no:cacheprovider")
# All that these tests have for the domain: their parameters are operations, path parameters and revisions.
EVERY_OPERATION = (
    "tests/unit/test_operations.py",
    "tests/unit/test_registry.py",
    "tests/unit/migrations/test_kinds.py",
    "tests/unit/web/test_openapi.py",
    "tests/integration/domains",
    "tests/integration/test_authorisation.py",
    "tests/integration/test_costs.py",
    "tests/integration/test_migrations.py::test_models_and_migrations_have_the_same_schema",
    "tests/integration/test_migrations.py::test_revision_can_be_applied_reverted_and_applied_again",
)


def test_generated_domain_passes_every_check(tmp_path: Path) -> None:
    """Two words and the longest name: lines that fit a short name must fit it too."""
    root = copy_tree(tmp_path)

    printed = run_in(root, "python", "-m", "ops.domain", "international_shipping_parcels")

    files = [line.strip() for line in printed.splitlines() if line.startswith("  ") and line.endswith(".py")]
    [revision] = [Path(file).name.split("_")[1] for file in files if file.startswith("migrations/")]
    assert len(files) == 12
    assert "run `make downgrade` before you change it" in printed
    run_in(root, "ruff", "check", *files)
    run_in(root, "ruff", "format", "--check", *files)
    run_in(root, "mypy", "--cache-dir", str(tmp_path / "mypy"), *files)
    run_in(root, "lint-imports")
    run_in(
        root, "pytest", *PYTEST, "tests/unit/domains/test_international_shipping_parcels.py", *EVERY_OPERATION,
        "-k", f"parcel or test_operations or test_registry or test_openapi or models_and or {revision}",
    )  # fmt: skip
