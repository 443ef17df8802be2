"""Faults of PgBouncer."""

from functools import partial
from time import sleep

from benchmarks.fault.faults.registry import fault as register
from benchmarks.fault.topology import PSYCOPG_PGBOUNCER
from benchmarks.fault.trial import Trial

fault = partial(register, group="PgBouncer", setups=(PSYCOPG_PGBOUNCER,))


def start_again_after(trial: Trial, signal: str) -> None:
    """End PgBouncer with a signal, and start it as soon as it has exited."""
    pgbouncer = trial.topology.pgbouncer
    pgbouncer.container.signal(signal)
    pgbouncer.container.wait()
    pgbouncer.start()


@fault("restarted")
def restart_pooler(trial: Trial) -> None:
    start_again_after(trial, "INT")


@fault("killed")
def kill_pooler(trial: Trial) -> None:
    start_again_after(trial, "KILL")


@fault("frozen")
def freeze_pooler(trial: Trial) -> None:
    container = trial.topology.pgbouncer.container
    container.freeze()
    sleep(trial.seconds)
    container.thaw()


@fault("network to it silent")
def silence_pooler(trial: Trial) -> None:
    trial.topology.relay.silence()
    sleep(trial.seconds)
    trial.topology.relay.forward()


@fault("PAUSE and RESUME")
def pause_pooler(trial: Trial) -> None:
    """Shorter than PgBouncer's query_wait_timeout, as a planned restart of PostgreSQL is."""
    trial.topology.pgbouncer.console("PAUSE")
    sleep(1)
    trial.topology.pgbouncer.console("RESUME")


@fault("PAUSE, PostgreSQL restarted, RESUME")
def restart_server_behind_pooler(trial: Trial) -> None:
    trial.topology.pgbouncer.console("PAUSE")
    trial.topology.primary.restart()
    trial.topology.pgbouncer.console("RESUME")


@fault("RELOAD x 5")
def reload_pooler(trial: Trial) -> None:
    for _ in range(5):
        trial.topology.pgbouncer.console("RELOAD")
        sleep(trial.seconds / 5)


@fault("RECONNECT")
def reconnect_pooler(trial: Trial) -> None:
    trial.topology.pgbouncer.console("RECONNECT")
