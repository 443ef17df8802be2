"""The program that gives the proxy a certificate of an ACME authority (compose.acme.yml)."""

import time
from pathlib import Path

import pytest

from ops.proxy import certificates


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the commands that the proxy's console gets. It refuses the first certificate."""
    commands: list[str] = []
    monkeypatch.setattr(certificates, "INSTALLED", tmp_path / "acme.pem")
    monkeypatch.setattr(certificates, "STATE", tmp_path)
    live = tmp_path / "live/proxy"
    live.mkdir(parents=True)
    for name in ("fullchain", "privkey"):
        (live / f"{name}.pem").write_text(f"{name}\n")

    def console(command: str) -> str:
        commands.append(" ".join(command.split()[:3]))
        is_refused = commands[-1] == "commit ssl cert" and commands.count("commit ssl cert") == 1
        return "unable to load the certificate" if is_refused else "Success!\n"

    monkeypatch.setattr(certificates, "console", console)
    return commands


def test_refused_certificate_is_given_again_later(proxy: list[str], tmp_path: Path) -> None:
    """It counted as installed, and its open transaction refused every later one."""
    assert certificates.install() is False
    assert proxy[-1] == "abort ssl cert"
    assert not (tmp_path / "acme.pem").exists()

    assert certificates.install() is True
    assert (tmp_path / "acme.pem").read_text() == "fullchain\nprivkey\n"
    proxy.clear()

    assert certificates.install() is True
    assert proxy == []


def test_first_failure_is_tried_again_soon_and_later_ones_within_the_limits_of_authorities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the first start, the proxy had not found the program yet: there was no certificate for 15 minutes."""
    results = iter([False, False, False, True, False, False])
    waits: list[float] = []

    def obtain() -> bool:
        try:
            return next(results)
        except StopIteration:
            raise SystemExit from None

    monkeypatch.setattr(certificates, "obtain", obtain)
    monkeypatch.setattr(certificates, "install", lambda: True)
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(SystemExit):
        certificates.main()
    soon, later, check = 20, 15 * 60, 12 * 3600
    assert waits == [soon, later, later, check, soon, later]
