"""The documents of `make sbom`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from app.paths import PROJECT_ROOT
from tests.support.stacks import IMAGE, REVISION, VERSION


@pytest.mark.usefixtures("images")
def test_sbom_names_the_packages_that_the_images_contain(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "ops/supply_chain/sbom.py"), IMAGE.partition(":")[2]]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)

    found: dict[str, dict[str, str]] = {}
    for file in (tmp_path / "sbom").iterdir():
        text = file.read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        document: dict[str, Any] = json.loads(text)
        found[file.name] = {part["purl"].partition("@")[0]: part["version"] for part in document["components"]}
        about = document["metadata"]["component"]
        assert about["version"] == VERSION
        assert {"name": "revision", "value": REVISION} in about["properties"]
    locked = (PROJECT_ROOT / "requirements/app.txt").read_text()
    assert f"\nfastapi=={found['headroom.cdx.json']['pkg:pypi/fastapi']} " in locked
    assert "pkg:deb/debian/pgbouncer" in found["headroom-pgbouncer.cdx.json"]
    assert "pkg:deb/debian/pgbackrest" in found["headroom-postgres.cdx.json"]
