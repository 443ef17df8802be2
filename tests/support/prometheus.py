"""Every expression that somebody relies on: of the alerts, the recording rules and the dashboard."""

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
# As Grafana would put them in.
_VARIABLES = {"$pool": ".*", "$replica": ".*", "$__rate_interval": "30s"}


class Expression(NamedTuple):
    """Where it is written, and what."""

    origin: str
    text: str

    @property
    def about_pgbouncer(self) -> bool:
        """Whether a stack without one has no answer to it."""
        return "pgbouncer_" in self.text and "db_" not in self.text


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules" / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows left out."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def hasty(expression: str) -> str:
    """The same of a quarter of its two minutes: a test waits for a whole window of them."""
    return expression.replace("2m", "30s")


def expressions() -> list[Expression]:
    found = [Expression(f"recording.yml {rule['record']}", rule["expr"]) for rule in rules("recording.yml")]
    # With `bool` a comparison answers 0 or 1 for each series, instead of leaving some out.
    found += [
        Expression(f"alerts.yml {rule['alert']}", re.sub(r"(==|[<>]=?)", r"\1 bool", hasty(rule["expr"])))
        for rule in rules("alerts.yml")
    ]
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in _VARIABLES.items():
                text = text.replace(name, value)
            found.append(Expression(f"dashboard {panel['title']}", text))
    return found


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """The series of an instant query."""
    answer = httpx.post(f"{prometheus}/api/v1/query", data={"query": expression}).json()
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def promtool(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run it in Prometheus's image, with the folder where the configuration has it."""
    mount = ["--volume", f"{FOLDER}:/etc/prometheus:ro", "--network", "none"]
    return subprocess.run(
        ["docker", "run", "--rm", "--interactive", *mount, "--entrypoint", "promtool", IMAGE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def files(pattern: str) -> list[str]:
    """Files of the folder, by their path in the container."""
    return [f"/etc/prometheus/{path.relative_to(FOLDER)}" for path in sorted(FOLDER.glob(pattern))]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
