"""Write the generated tables into the documents: `make docs`. `tests/unit/test_docs.py` compares them."""

from app.observability.catalogue import metrics_table
from app.paths import PROJECT_ROOT
from app.settings import settings_table

DOCS = PROJECT_ROOT / "docs"
TABLES = {"settings.md": settings_table, "metrics.md": metrics_table}


def with_table(document: str, table: str) -> str:
    """Return the document with its table replaced by the one that has the same first line."""
    header = table.partition("\n")[0]
    before, found, rest = document.partition(header)
    if not found:
        raise ValueError(f"no table that starts with {header!r}")
    _, blank_line, after = rest.partition("\n\n")
    return before + table + (blank_line or "\n") + after


def main() -> None:
    """Rewrite each document that has a generated table."""
    for name, table in TABLES.items():
        path = DOCS / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), table()), encoding="utf-8")
        print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
