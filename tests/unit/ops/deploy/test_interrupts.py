"""Signals during an operation."""

import os
import signal
from collections.abc import Iterator

import pytest

from ops.deploy import interrupts
from ops.deploy.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_interrupts_once(number: signal.Signals) -> None:
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)  # ignored: going back is not interrupted


def test_signal_waits_for_the_end_of_a_change() -> None:
    steps = []
    with pytest.raises(Interrupted), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        with interrupts.deferred():
            steps.append("stop")
        steps.append("remove")
    assert steps == ["stop", "remove"]
