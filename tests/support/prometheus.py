"""The expressions of the alerts, the recording rules and the dashboard, and promtool."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from app.paths import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "ops/prometheus"
DASHBOARD = PROJECT_ROOT / "ops/grafana/dashboards/headroom.json"
IMAGE = "prom/prometheus:v2.53.3"
# The values that Grafana would insert.
_VARIABLES = {"$pool": ".*", "$replica": ".*", "$__rate_interval": "30s"}


class Expression(NamedTuple):
    """A PromQL expression and the place where it is written."""

    origin: str
    text: str

    @property
    def about_pgbouncer(self) -> bool:
        """Return True if only a stack with PgBouncer has series for it."""
        return "pgbouncer_" in self.text and "db_" not in self.text

    @property
    def about_production(self) -> bool:
        """Return True if only production has series for it: those of the proxy or of Alertmanager."""
        return self.origin.startswith("production.yml") or "haproxy_" in self.text or "proxy_" in self.text

    @property
    def about_backups(self) -> bool:
        """Return True if only a stack with backups has series for it."""
        return "db_backup" in self.text or "db_wal_" in self.text

    @property
    def about_receivers(self) -> bool:
        """Return True if only a stack whose alerts reach a person has series for it."""
        return "alertmanager_notification" in self.text

    @property
    def about_alerts(self) -> bool:
        """Return True if it has series only while another alert fires."""
        return "ALERTS" in self.text

    @property
    def about_standbys(self) -> bool:
        """Return True if only a stack that reads on a standby has series for it."""
        return "db_read" in self.text

    @property
    def about_drills(self) -> bool:
        """Return True if only a stack with a restore drill has series for it."""
        return "db_backup_drill" in self.text


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules" / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels without the rows."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def hasty(expression: str) -> str:
    """Shorten the windows of 2 minutes to 30 s: a test has to wait for a whole window."""
    return expression.replace("2m", "30s")


def expressions() -> list[Expression]:
    found = [Expression(f"recording.yml {rule['record']}", rule["expr"]) for rule in rules("recording.yml")]
    # With `bool` a comparison returns 0 or 1 for each series, instead of filtering them.
    found += [
        Expression(f"{file} {rule['alert']}", re.sub(r"(==|[<>]=?)", r"\1 bool", hasty(rule["expr"])))
        for file in ("alerts.yml", "production.yml")
        for rule in rules(file)
    ]
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in _VARIABLES.items():
                text = text.replace(name, value)
            found.append(Expression(f"dashboard {panel['title']}", text))
    return found


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Return the series of an instant query."""
    answer = httpx.post(f"{prometheus}/api/v1/query", data={"query": expression}).json()
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def promtool(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool in Prometheus's image. The folder is mounted where the configuration expects it."""
    mount = ["--volume", f"{FOLDER}:/etc/prometheus:ro", "--network", "none"]
    return subprocess.run(
        ["docker", "run", "--rm", "--interactive", *mount, "--entrypoint", "promtool", IMAGE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def files(pattern: str) -> list[str]:
    """Return the paths that files of the folder have in the container."""
    return [f"/etc/prometheus/{path.relative_to(FOLDER)}" for path in sorted(FOLDER.glob(pattern))]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
