"""The program that gives the proxy a certificate of an ACME authority (compose.acme.yml)."""

import signal
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the times that the program sleeps. It does not sleep."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return waits


def results_of(results: list[bool | OSError]) -> Callable[[], bool]:
    """Return a function with these results. After the last one, it ends the program."""
    left = iter(results)

    def result() -> bool:
        for each in left:
            if isinstance(each, OSError):
                raise each
            return each
        raise SystemExit

    return result


def test_failed_attempts_are_repeated_soon_and_then_within_the_limits_of_authorities(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first start, the proxy had not found the program yet: there was no certificate for 15 minutes."""
    monkeypatch.setattr(certificates, "wait_for_proxy", lambda: None)
    monkeypatch.setattr(certificates, "install", lambda: True)
    monkeypatch.setattr(certificates, "obtain", results_of([*[False] * 12, True, False]))
    with pytest.raises(SystemExit):
        certificates.main()
    quarter, check = 15 * 60, 12 * 3600
    assert waits == [20, 60, *[quarter] * 8, 6 * 3600, 6 * 3600, check, 20]


def test_installing_is_repeated_without_another_attempt(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "wait_for_proxy", lambda: None)
    monkeypatch.setattr(certificates, "install", results_of([False, FileNotFoundError("console.sock"), True]))
    monkeypatch.setattr(certificates, "obtain", results_of([True]))
    with pytest.raises(SystemExit):
        certificates.main()
    assert waits == [20, 20, 12 * 3600]


def test_first_attempt_waits_until_the_proxy_has_found_the_program(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[str | OSError] = iter(
        [FileNotFoundError("console.sock"), "acme,acme,0,MAINT (resolution)\n", "acme,acme,0,no check\n"]
    )

    def console(command: str) -> str:
        assert command == "show stat acme 4 -1"
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(certificates, "console", console)
    certificates.wait_for_proxy()
    assert waits == [1, 1]


def test_proxy_that_never_finds_the_program_does_not_hinder_renewals(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "console", lambda _: "acme,acme,0,MAINT (resolution)\n")
    certificates.wait_for_proxy()
    assert waits == [1] * 60
