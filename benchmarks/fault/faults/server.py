"""Faults of PostgreSQL and of the network in front of it."""

import signal
from contextlib import ExitStack, suppress
from functools import partial
from time import monotonic, sleep

import psycopg

from benchmarks.fault.faults.registry import fault as register
from benchmarks.fault.postgres import follow, promote
from benchmarks.fault.topology import API_BACKENDS, ASYNCPG, Plan, fill_disk
from benchmarks.fault.trial import Trial

fault = partial(register, group="PostgreSQL")

# In lengths of other faults: 60 s and 20 s by default.
CUT = 15
SILENCE = 5
TERMINATE = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {API_BACKENDS}"
# Behind PgBouncer a backend has the name of the client that it served last, if the client gave one.
TERMINATE_ROLE = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'headroom_app'"


@fault("restarted")
def restart_server(trial: Trial) -> None:
    trial.topology.primary.restart()


@fault("killed")
def kill_server(trial: Trial) -> None:
    trial.topology.primary.restart(signal.SIGKILL)


@fault("paused")
def pause_server(trial: Trial) -> None:
    server = trial.topology.primary
    server.signal(signal.SIGSTOP)
    sleep(trial.seconds)
    server.signal(signal.SIGCONT)


@fault("refusing connections")
def stop_server_for_a_while(trial: Trial) -> None:
    server = trial.topology.primary
    server.stop(signal.SIGQUIT)
    sleep(trial.seconds)
    server.start()


@fault("network cut", plan=Plan(has_own_network=True))
def cut_network(trial: Trial) -> None:
    """Every packet is dropped. Open connections go on where they were when the network is back."""
    network = trial.topology.network
    network.drop()
    sleep(trial.seconds * CUT)
    network.restore()


@fault("silent")
def silence_server(trial: Trial) -> None:
    """Connections are accepted and what is sent is acknowledged, but nothing is answered."""
    trial.topology.server_relay.silence()
    sleep(trial.seconds * SILENCE)
    trial.topology.server_relay.forward()


@fault("silent, connections lost")
def lose_connections(trial: Trial) -> None:
    """The network is silent for a while. The connections are then gone on the server's side only."""
    relay, server = trial.topology.server_relay, trial.topology.primary
    relay.silence()
    sleep(trial.seconds / 2)
    server.execute(TERMINATE_ROLE)
    sleep(trial.seconds / 2)
    relay.forward()


@fault("full (max_connections)")
def fill_server(trial: Trial) -> None:
    """Other clients take every connection that becomes free."""
    server = trial.topology.primary
    until = monotonic() + trial.seconds
    with ExitStack() as taken:
        server.execute("CREATE ROLE other LOGIN", "GRANT CONNECT ON DATABASE headroom TO other")
        first = True
        while monotonic() < until:
            with suppress(psycopg.OperationalError):
                while True:
                    taken.enter_context(server.connect("other"))
            if first:
                first = False
                server.execute(TERMINATE_ROLE)
            else:
                sleep(0.05)


@fault("read-only")
def make_server_read_only(trial: Trial) -> None:
    server = trial.topology.primary
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    sleep(trial.seconds)
    server.execute(
        "SET default_transaction_read_only = off",
        "ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    )


@fault("disk full", plan=Plan(on_small_disk=True))
def fill_server_disk(trial: Trial) -> None:
    filler = fill_disk(trial.topology.disk)
    sleep(trial.seconds)
    filler.unlink()


@fault("failover, one address", plan=Plan(has_standby=True))
def fail_over_behind_an_address(trial: Trial) -> None:
    """The primary is killed, and the address leads to the standby once it is promoted."""
    _fail_over(trial)


@fault("failover, two hosts in DATABASE_URL", setups=(ASYNCPG,), plan=Plan(has_standby=True, names_both_servers=True))
def fail_over_to_the_second_host(trial: Trial) -> None:
    _fail_over(trial)


def _fail_over(trial: Trial) -> None:
    topology = trial.topology
    assert topology.standby is not None
    topology.primary.stop(signal.SIGKILL)
    sleep(trial.seconds / 2)  # the time until an operator promotes the standby
    promote(topology.standby)
    topology.server_relay.switch(topology.standby.port)
    trial.mark_end()
    topology.primary = topology.standby


@fault("switchover, the address follows late", plan=Plan(has_standby=True))
def switch_over(trial: Trial) -> None:
    """The servers change their roles. The address leads to the old primary for a while, which is a standby now.

    The fault ends when the address leads to the new primary for new connections. Open ones stay at the standby.
    """
    topology = trial.topology
    old, new = topology.primary, topology.standby
    assert new is not None
    old.stop()  # sends the rest of the log to the standby
    promote(new)
    # An acknowledged write can be read at both servers.
    new.execute("ALTER SYSTEM SET synchronous_commit = remote_apply")
    follow(old, new)
    sleep(trial.seconds / 2)
    topology.server_relay.switch_new(new.port)
    if topology.is_pooled:
        topology.pgbouncer.console("RECONNECT")  # part of a switchover behind PgBouncer
    trial.mark_end()
    topology.primary = new


@fault("backends terminated one by one")
def terminate_backends(trial: Trial) -> None:
    one = TERMINATE_ROLE.replace("count(pg_terminate_backend(pid))", "pg_terminate_backend(pid)")
    until = monotonic() + trial.seconds
    while monotonic() < until:
        trial.topology.primary.execute(f"{one} ORDER BY random() LIMIT 1")
        sleep(0.05)


@fault("all backends terminated")
def terminate_all_backends(trial: Trial) -> None:
    until = monotonic() + trial.seconds
    while monotonic() < until:
        trial.topology.primary.execute(TERMINATE_ROLE)
        sleep(1)


@fault("DNS silent, connections cut", plan=Plan(resolves_name=True))
def silence_dns(trial: Trial) -> None:
    topology = trial.topology
    topology.names.is_silent = True
    topology.relay.cut()
    sleep(trial.seconds)
    topology.names.is_silent = False


@fault("posts locked")
def lock_table(trial: Trial) -> None:
    with trial.topology.primary.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE posts IN ACCESS EXCLUSIVE MODE")
        sleep(trial.seconds)
