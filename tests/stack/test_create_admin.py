"""`headroom create-admin`."""

import subprocess
import sys

import httpx
import pytest

from tests.support.stacks import LocalStack, Stack

pytestmark = pytest.mark.parametrize("stack", ["local"], indirect=True)


def create_admin(stack: Stack, email: str, password: str) -> subprocess.CompletedProcess[str]:
    assert isinstance(stack, LocalStack)
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", "create-admin", "--email", email],
        cwd=stack.directory,
        env=stack.environment,
        input=f"{password}\n",
        capture_output=True,
        text=True,
        check=False,
    )


def test_created_administrator_can_sign_in_and_list_users(stack: Stack) -> None:
    created = create_admin(stack, "root@example.com", "correct horse")
    assert (created.returncode, created.stdout) == (0, "root@example.com is an administrator\n"), created.stderr

    form = {"username": "root@example.com", "password": "correct horse"}
    token = httpx.post(f"{stack.api}/auth/token", data=form, timeout=30).json()["access_token"]
    users = httpx.get(f"{stack.api}/users", headers={"authorization": f"Bearer {token}"})
    assert "root@example.com" in {user["email"] for user in users.json()["items"]}

    again = create_admin(stack, "ROOT@example.com", "correct horse")
    assert (again.returncode, again.stderr) == (
        1, "headroom create-admin: This e-mail address is already registered.\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("email", "password", "field"), [("root", "correct horse", "email"), ("a@example.com", "short", "password")]
)
def test_invalid_administrator_is_refused_with_one_line(stack: Stack, email: str, password: str, field: str) -> None:
    refused = create_admin(stack, email, password)

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"headroom create-admin: {field}: ")
    assert refused.stderr.count("\n") == 1
