"""Schemathesis sends generated requests for every operation of the OpenAPI document to the running stack."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.postgres import connect
from tests.support.stacks import Stack

PASSWORD = "correct horse"
# Generated ids are small, so no request can delete or deactivate the administrator who sends it.
ADMIN_ID = 10**15 + 7
# The same requests in each run, so that a failure is caused by a change. SCHEMATHESIS_SEED generates other requests.
SEED = os.environ.get("SCHEMATHESIS_SEED", "6")


def administrator_token(stack: Stack) -> str:
    admin = {"email": "schemathesis@example.com", "name": "Admin", "password": PASSWORD}
    created = httpx.post(f"{stack.api}/users", json=admin, timeout=30)
    with connect(stack.database_url()) as connection:
        connection.execute("UPDATE users SET is_admin = true, id = %s WHERE id = %s", (ADMIN_ID, created.json()["id"]))
    signed_in = httpx.post(
        f"{stack.api}/auth/token", data={"username": admin["email"], "password": PASSWORD}, timeout=30
    )
    return str(signed_in.json()["access_token"])


# The API is the same in a container.
@pytest.mark.parametrize("stack", ["local"], indirect=True)
def test_generated_requests_find_no_defect(stack: Stack, tmp_path: Path) -> None:
    stack.seed(users=20, posts=50)

    finished = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            "--config-file",
            Path(__file__).with_name("schemathesis.toml"),
            "run",
            f"{stack.api}/openapi.json",
            "--header",
            f"Authorization: Bearer {administrator_token(stack)}",
            "--checks=all",
            "--max-examples=25",
            f"--seed={SEED}",
            "--generation-database=:memory:",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert finished.returncode == 0, finished.stdout
    cases = re.search(r"(\d+) generated, \1 passed", finished.stdout)
    assert cases, finished.stdout
    assert int(cases.group(1)) > 300
