"""Alertmanager, as compose.prod.yml runs it, with a mail server and a web server that accept alerts."""

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_string
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.ports import free_port
from tests.support.proxied import PYTHON, compose_service, docker
from tests.support.stacks import Compose, ProdStack
from tests.support.waiting import eventually

TEST_ALERT = ["exec", "-T", "alertmanager", "sh", "/etc/alertmanager/test-alert.sh"]


class Alerting(Compose):
    """The service alertmanager alone, whose receivers are a container `sink`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.secrets = folder / "secrets"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(
            name,
            "compose.prod.yml",
            build=False,
            SECRETS_DIR=str(self.secrets),
            ALERTMANAGER_PORT=str(port),
            ALERT_EMAIL_TO="o'brien@example.com, night@example.com",
            ALERT_SMTP_SERVER="sink:2525",
            ALERT_SMTP_USER="headroom",
        )
        subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", self.secrets, "sink"], check=True, capture_output=True)
        (self.secrets / "alert_smtp_password").write_text("secret-of-the-mail-server\n")
        (self.secrets / "alert_watchdog_url").write_text("http://sink:8080/watchdog/secret-in-the-url\n")
        self.set_webhook("http://sink:8080/hook/secret-in-the-url")
        trusting = folder / "trusting.yml"  # the mail server's certificate is from our own authority
        authority = "/etc/ssl/authority.pem"
        mount = f"{self.secrets}/tls_ca_certificate:{authority}:ro"
        service = {"environment": {"SSL_CERT_FILE": authority}, "volumes": [mount]}
        trusting.write_text(json.dumps({"services": {"alertmanager": service}}))
        self.files.append(str(trusting))

    def set_webhook(self, url: str) -> None:
        (self.secrets / "alert_webhook_url").write_text(url)

    def up(self) -> None:
        self.compose("up", "--detach", "--no-deps", "--wait", "alertmanager")
        program = PROJECT_ROOT / "tests/support/alert_sink.py"
        mounts = [f"--volume={program}:/alert_sink.py:ro", f"--volume={self.secrets}:/run/secrets:ro"]
        place = [f"--network={self.name}_alerting", "--network-alias=sink", f"--name={self.name}-sink"]
        docker("run", "--detach", "--init", *place, *mounts, PYTHON, "python", "/alert_sink.py")
        eventually(self.received, within=60)

    def down(self) -> None:
        docker("rm", "--force", f"{self.name}-sink")
        super().down()

    def received(self, *has: str) -> list[dict[str, Any]]:
        """Return what the sink got, or of it what contains all these texts."""
        lines = docker("logs", f"{self.name}-sink").splitlines()
        return [json.loads(line) for line in lines if all(text in line for text in has)]

    def fire(self, *alerts: dict[str, str]) -> None:
        ends = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        body = [{"labels": labels, "endsAt": ends} for labels in alerts]
        httpx.post(f"{self.url}/api/v2/alerts", json=body).raise_for_status()


@pytest.fixture(scope="module")
def alerting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerting]:
    require_engine()
    with Alerting(f"headroom-alerting-{os.getpid()}", tmp_path_factory.mktemp("alerting")).running() as alerting:
        yield alerting


def test_test_alert_reaches_the_webhook_and_the_mailbox(alerting: Alerting) -> None:
    assert alerting.compose(*TEST_ALERT) == "webhook: accepted\nemail: accepted\n"

    [call] = alerting.received("/hook/", "TestAlert", "firing")
    assert call["body"]["alerts"][0]["annotations"]["summary"] == "This is a test."
    [sent] = alerting.received("mail", "TestAlert")
    mail = message_from_string(sent["mail"])
    assert mail["Subject"] == "[firing] TestAlert: This is a test."
    assert (mail["From"], mail["To"]) == ("o'brien@example.com", "o'brien@example.com, night@example.com")
    assert (sent["tls"], sent["signed_in"]) == (True, "headroom:secret-of-the-mail-server")


def test_mail_goes_to_a_server_with_tls_from_the_first_byte(alerting: Alerting) -> None:
    alerting.environment["ALERT_SMTP_SERVER"] = "sink:465"
    try:
        alerting.compose("up", "--detach", "--no-deps", "--wait", "alertmanager")
        before = len(alerting.received("mail"))
        assert "email: accepted" in alerting.compose(*TEST_ALERT)
        assert [sent["tls"] for sent in alerting.received("mail")[before:]] == [True]
    finally:
        alerting.environment["ALERT_SMTP_SERVER"] = "sink:2525"
        alerting.compose("up", "--detach", "--no-deps", "--wait", "alertmanager")


def test_test_alert_fails_with_the_name_of_the_receiver_that_refuses(alerting: Alerting) -> None:
    alerting.set_webhook("http://sink:8080/broken/secret-in-the-url")
    try:
        with pytest.raises(AssertionError, match="webhook: failed; the log of the service alertmanager") as failed:
            alerting.compose(*TEST_ALERT)
    finally:
        alerting.set_webhook("http://sink:8080/hook/secret-in-the-url")

    assert "email: accepted" in str(failed.value)
    assert "secret-in-the-url" not in alerting.compose("logs") + str(failed.value)


def test_consequences_of_another_alert_are_left_out(alerting: Alerting) -> None:
    alerting.fire(
        {"alertname": "ServerDown", "severity": "critical"},
        {"alertname": "PoolTimeouts", "severity": "critical", "replica": "a", "pool": "main"},
        {"alertname": "PoolTimeouts", "severity": "critical", "replica": "b", "pool": "main"},
        {"alertname": "PoolSaturated", "severity": "warning", "replica": "a", "pool": "main"},
        {"alertname": "OverBudget", "severity": "warning", "limit": "server"},
        {"alertname": "ServerDownRecently", "severity": "none"},
        {"alertname": "Watchdog", "severity": "none"},
    )

    groups = httpx.get(f"{alerting.url}/api/v2/alerts/groups").json()
    found = {
        (group["labels"].get("alertname"), group["receiver"]["name"]): sorted(
            alert["status"]["state"] for alert in group["alerts"]
        )
        for group in groups
    }
    assert {key: states for key, states in found.items() if key[0]} == {
        ("ServerDown", "operators"): ["active"],
        ("PoolTimeouts", "operators"): ["suppressed", "suppressed"],
        ("PoolSaturated", "operators"): ["suppressed"],
        ("OverBudget", "operators"): ["active"],
        ("ServerDownRecently", "none"): ["active"],
        ("Watchdog", "watchdog"): ["active"],
    }
    eventually(lambda: alerting.received("/watchdog/", "Watchdog"), within=60)
    assert not alerting.received("/hook/", "Watchdog")


def test_mail_without_a_server_is_refused_by_name() -> None:
    require_engine()
    service = compose_service("alertmanager")
    mount = f"--volume={PROJECT_ROOT}/ops/alertmanager:/etc/alertmanager:ro"
    command = ["docker", "run", "--rm", "--env=ALERT_EMAIL_TO=a@example.com", mount, "--entrypoint=sh"]

    refused = subprocess.run(
        [*command, service["image"], *service["entrypoint"][1:]], capture_output=True, text=True, check=False
    )

    assert refused.returncode == 1
    expected = "alertmanager does not start: ALERT_EMAIL_TO is set, but ALERT_SMTP_SERVER is not; set it to HOST:PORT\n"
    assert refused.stderr == expected


def test_without_receivers_alertmanager_runs_and_says_so(prod: ProdStack) -> None:
    def alerts() -> set[str]:
        return {alert["labels"]["alertname"] for alert in httpx.get(f"{prod.alertmanager}/api/v2/alerts").json()}

    eventually(lambda: "Watchdog" in alerts(), within=60)
    assert "No receiver is set: alerts reach no person." in prod.compose("logs", "alertmanager")
    with pytest.raises(AssertionError, match="no receiver is set: set ALERT_EMAIL_TO and ALERT_SMTP_SERVER, or"):
        prod.compose(*TEST_ALERT)
