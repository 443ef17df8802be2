"""The API's container is stopped, killed and replaced."""

from functools import partial

from benchmarks.fault.api import ApiContainer
from benchmarks.fault.faults.registry import fault as register
from benchmarks.fault.topology import Plan
from benchmarks.fault.trial import Trial

fault = partial(register, group="Container", plan=Plan(in_container=True))


def _api(trial: Trial) -> ApiContainer:
    api = trial.topology.api
    assert isinstance(api, ApiContainer)
    return api


@fault("stopped and started")
def stop_container(trial: Trial) -> None:
    api = _api(trial)
    api.container.stop()
    api.container.start()
    api.wait_until_ready()


@fault("killed and started")
def kill_container(trial: Trial) -> None:
    api = _api(trial)
    api.container.signal("KILL")
    api.container.wait()
    api.container.start()
    api.wait_until_ready()


@fault("replaced by a new one")
def replace_container(trial: Trial) -> None:
    """As in a deploy: the new one becomes ready, new requests go there, and the old one is stopped."""
    new = trial.topology.start_container()
    trial.traffic.port = new.port
    _api(trial).container.stop()
