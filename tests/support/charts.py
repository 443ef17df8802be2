"""Render the chart in ops/kubernetes/headroom with helm, without a cluster."""

import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.paths import PROJECT_ROOT

CHART = PROJECT_ROOT / "ops/kubernetes/headroom"
Manifest = dict[str, Any]

# Every kind of installation, by the values that it needs.
MATRIX: dict[str, dict[str, Any]] = {
    "default": {},
    "keda": {"autoscaling": {"kind": "keda"}},
    "fixed": {"autoscaling": {"kind": "none"}, "api": {"replicas": 4}},
    "direct": {"pooler": {"enabled": False}, "api": {"workers": 1, "pool": {"size": 2, "maxOverflow": 4}}},
    "external": {"database": {"kind": "external", "external": {"cidrs": ["192.0.2.0/24"]}}},
    "external-direct": {
        "database": {"kind": "external", "maxConnections": 500, "external": {"ca": False}},
        "pooler": {"enabled": False},
    },
    "reads": {"readReplicas": {"enabled": True}},
    "reads-external": {"database": {"kind": "external"}, "readReplicas": {"enabled": True, "poolSize": 2}},
    "everything": {
        "readReplicas": {"enabled": True, "poolSize": 3},
        "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]},
        "api": {
            "settings": {"FORWARDED_ALLOW_IPS": "10.0.0.0/8", "LOG_EVERY": "100", "ROOT_PATH": "/api"},
            "podLabels": {"team": "a"},
            "podAnnotations": {"note": "b"},
            "nodeSelector": {"pool": "api"},
            "tolerations": [{"key": "api", "operator": "Exists"}],
        },
        "migration": {"settings": {"MIGRATION_RETRY_TIMEOUT": "60"}},
        "database": {
            "cluster": {
                "walStorage": "5Gi",
                "storageClass": "fast",
                "parameters": {"shared_buffers": "600MB"},
                "nodeSelector": {"pool": "databases"},
                "tolerations": [{"key": "databases", "operator": "Exists"}],
            },
            "backup": {"enabled": True, "destinationPath": "s3://bucket/a", "endpointURL": "https://s3.example.com"},
        },
        "ingress": {"enabled": True, "className": "nginx", "annotations": {"a": "b"}, "tlsSecret": "api-tls"},
        "gateway": {"enabled": True, "parents": [{"name": "public"}], "hostnames": ["api.example.com"]},
        "networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]},
        "monitoring": {"labels": {"release": "prometheus"}},
    },
    "least": {
        "quota": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "monitoring": {"enabled": False, "dashboard": False},
        "database": {"cluster": {"instances": 1, "synchronousStandbys": 0}},
        "api": {"surge": 0},
        "pooler": {"surge": 0},
        "runAsUser": None,
    },
}


class RenderFailed(Exception):
    """helm refused the values."""


def helm(*arguments: str, values: object = None) -> str:
    """Run helm, with the values on its stdin. Return its output; raise RenderFailed with its message."""
    program = _program()
    done = subprocess.run(
        [program, *arguments, *(["--values", "-"] if values is not None else [])],
        input=yaml.safe_dump(values) if values is not None else None,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"KUBECONFIG": os.devnull},  # no cluster
    )
    if done.returncode:
        raise RenderFailed(done.stderr)
    return done.stdout


def render(values: object, *arguments: str) -> str:
    """Return the manifests of the release `headroom` in the namespace `prod`."""
    return helm("template", "headroom", str(CHART), "--namespace", "prod", *arguments, values=values)


def notes(values: object) -> str:
    """Return the notes that helm prints after an install, with the budget's table."""
    output = helm("install", "headroom", str(CHART), "--namespace", "prod", "--dry-run=client", values=values)
    return output.partition("\nNOTES:\n")[2]


@cache
def rendered(name: str) -> str:
    """Return the manifests of an installation of the MATRIX."""
    return render(MATRIX[name])


def manifests(text: str) -> list[Manifest]:
    """Return the objects of rendered manifests."""
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(text: str, kind: str, name: str = "") -> Manifest:
    """Return the one object of a kind whose name ends with `name`."""
    [found] = [each for each in manifests(text) if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    return found


# Parts that are files of other folders. They are compared with those files, not kept twice.
_BULKY = ("headroom.json", "roles.sql", "groups")


def golden(text: str) -> str:
    """Return rendered manifests for a golden file: without comments, the files that they contain, and hashes of names.

    The first job's name has a hash of its specification, which is in the golden file (`make adopt` changes it).
    """

    def shortened(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: "..." if name in _BULKY else shortened(value) for name, value in part.items()}
        return [shortened(each) for each in part] if isinstance(part, list) else part

    text = re.sub(r"(name: \S+-migrate)-[0-9a-f]{8}$", r"\1-00000000", text, flags=re.MULTILINE)
    return yaml.safe_dump_all(map(shortened, manifests(text)), sort_keys=False, width=120)


def golden_file(name: str) -> Path:
    """Return the golden file of an installation of the MATRIX."""
    return PROJECT_ROOT / f"tests/unit/ops/kubernetes/golden/{name}.yaml"


GOLDEN = ("default", "everything")


def main() -> None:
    """Write the golden files."""
    for name in GOLDEN:
        golden_file(name).write_text(golden(rendered(name)))


@cache
def _program() -> str:
    own = Path(sys.prefix, "bin/helm")
    program = str(own) if own.exists() else shutil.which("helm")
    if program is None:
        if (sys.platform, platform.machine()) == ("linux", "x86_64"):
            pytest.fail("helm was not found: run make .venv/.helm")
        pytest.skip("helm was not found")
    return program


if __name__ == "__main__":
    main()
