"""Faults of the API's workers, and the signals of an operator."""

import os
import random
import signal
from contextlib import suppress
from functools import partial
from time import monotonic, sleep

from benchmarks.fault.api import WORKERS, ApiProcess
from benchmarks.fault.faults.registry import fault as register
from benchmarks.fault.topology import Plan
from benchmarks.fault.trial import Trial
from tests.support.waiting import eventually

fault = partial(register, group="API")

# Gunicorn's default `timeout` is 30 s.
STUCK_WORKER_WITHIN_SECONDS = 40


def _api(trial: Trial) -> ApiProcess:
    api = trial.topology.api
    assert isinstance(api, ApiProcess)
    return api


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_until_replaced(api: ApiProcess, old: set[int]) -> None:
    eventually(lambda: len(api.workers()) >= WORKERS and not old & set(api.workers()), within=60)


@fault("a worker killed")
def kill_worker(trial: Trial) -> None:
    _signal(_api(trial).workers()[0], signal.SIGKILL)


@fault("all workers killed")
def kill_workers(trial: Trial) -> None:
    api = _api(trial)
    old = api.workers()
    for pid in old:
        _signal(pid, signal.SIGKILL)
    _wait_until_replaced(api, set(old))
    api.wait_until_ready()


@fault("a worker stuck (SIGSTOP)")
def stop_worker(trial: Trial) -> None:
    """The fault ends when the worker has been replaced."""
    api = _api(trial)
    stuck = api.workers()[0]
    _signal(stuck, signal.SIGSTOP)
    try:
        eventually(lambda: stuck not in api.workers(), within=STUCK_WORKER_WITHIN_SECONDS)
    finally:
        _signal(stuck, signal.SIGCONT)


@fault("all workers paused")
def pause_workers(trial: Trial) -> None:
    workers = _api(trial).workers()
    for pid in workers:
        _signal(pid, signal.SIGSTOP)
    sleep(trial.seconds)
    for pid in workers:
        _signal(pid, signal.SIGCONT)


@fault("SIGHUP x 10")
def reload_workers(trial: Trial) -> None:
    api = _api(trial)
    for _ in range(10):
        old = set(api.workers())
        _signal(api.master, signal.SIGHUP)
        # The next one comes while the old workers of this one still drain.
        eventually(lambda: len(set(api.workers()) - old) >= WORKERS, within=30)  # noqa: B023 - called at once
        sleep(trial.seconds / 10)
    _wait_until_replaced(api, old)


@fault("SIGTERM to a worker x 100")
def terminate_workers(trial: Trial) -> None:
    api = _api(trial)
    for _ in range(100):
        if workers := api.workers():
            _signal(random.choice(workers), signal.SIGTERM)
        sleep(trial.seconds / 40)
    eventually(lambda: len(api.workers()) == WORKERS, within=30)


@fault("max_requests", plan=Plan(settings={"MAX_REQUESTS": "200"}))
def recycle_workers(trial: Trial) -> None:
    """The workers are replaced by Gunicorn again and again, at about 200 requests each."""
    until = monotonic() + trial.seconds * 3
    while monotonic() < until:
        sleep(0.5)
