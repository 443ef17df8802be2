"""Write the generated parts of documents and Compose files: `make docs`.

`tests/unit/test_docs.py` compares the tables, `tests/unit/test_compose_files.py` the settings of containers,
`tests/unit/ops/kubernetes/test_chart.py` the values of the chart.
"""

import re

from app.observability.catalogue import metrics_table
from app.paths import PROJECT_ROOT
from app.settings import Settings, is_secret, settings_table

DOCS = PROJECT_ROOT / "docs"
TABLES = {"settings.md": settings_table, "metrics.md": metrics_table}
COMPOSE_FILES = ("docker-compose.yml", "compose.prod.yml")
CHART = PROJECT_ROOT / "ops/kubernetes/headroom"
# The first line of the generated part of a Compose file. A blank line ends it.
SETTINGS_OF_CONTAINERS = "x-settings: &settings # written by `make docs`"
# Settings that a container does not take from the environment of Compose, besides secrets.
NOT_PASSED_ON = {
    "api_host": "the image sets it: a container listens on all its addresses",
    "api_port": "the port in the container is fixed; in docker-compose.yml the variable is the published port",
    "api_replica": "the name of one replica: its container's host name",
    "exporter_host": "as api_host",
    "exporter_port": "as api_port",
    "data_dir": "only `make run` has it",
    "backup_status_dir": "the path of a volume",
    "metrics_dir": "the path of a volume",
    "db_pooler": "the Compose file has a PgBouncer or has none",
}


def settings_of_containers() -> str:
    """Return the part of a Compose file that passes every setting on. An empty value stands for the default."""
    names = [
        name.upper()
        for name, field in Settings.model_fields.items()
        if name not in NOT_PASSED_ON and not is_secret(field)
    ]
    return "\n".join([SETTINGS_OF_CONTAINERS, *(f'  {name}: "${{{name}:-}}"' for name in names)])


def chart_table() -> str:
    """Return the table of the chart's values. The comment `# -- ...` above a value describes it."""
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    path: list[str] = []
    description = ""
    inside = False  # of a value that its description covers as a whole
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        comment = re.match(r" *# (?:-- )?(.*)", line)
        assignment = re.match(r"( *)(\w+):(?: +(.+))?", line)
        if comment:
            description = f"{description} {comment[1]}" if description and "# -- " not in line else comment[1]
        elif assignment:
            depth = len(assignment[1]) // 2
            inside = inside and depth >= len(path)
            if not inside:
                path = [*path[:depth], assignment[2]]
                if description:
                    default = f"`{assignment[3]}`" if assignment[3] else "see `values.yaml`"
                    rows.append(f"| `{'.'.join(path)}` | {default} | {description} |")
                    inside = not assignment[3]
                description = ""
        else:
            description = ""
    return "\n".join(rows)


def with_table(document: str, table: str) -> str:
    """Replace a table of the document, and return the result.

    The old table has the same first line as the new one. It ends at a blank line.
    """
    header = table.partition("\n")[0]
    before, found, rest = document.partition(header)
    if not found:
        raise ValueError(f"no table that starts with {header!r}")
    _, blank_line, after = rest.partition("\n\n")
    return before + table + (blank_line or "\n") + after


def main() -> None:
    """Rewrite each file that has a generated part."""
    for name, table in TABLES.items():
        path = DOCS / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), table()), encoding="utf-8")
        print(path.relative_to(PROJECT_ROOT))
    readme = CHART / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), chart_table()), encoding="utf-8")
    print(readme.relative_to(PROJECT_ROOT))
    for name in COMPOSE_FILES:
        path = PROJECT_ROOT / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), settings_of_containers()), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
