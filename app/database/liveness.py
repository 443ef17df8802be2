"""Checks of connections and servers without a round trip, and the ping, which takes one."""

import asyncio
import logging
import os
import select
import socket
from contextlib import suppress
from typing import Any

import psycopg
from sqlalchemy import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.util import await_only

from app.database.conninfo import conninfo, hosts
from app.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

# Event-loop iterations that a ping gets after its deadline. If the process was paused, the answer and the deadline
# arrive in the same iteration. Without an extra iteration 4 of 10 answers came too late, with one none did.
EXTRA_ITERATIONS = 3


class SocketProbe:
    """Polls the socket of an open connection without a round trip.

    A probe costs one system call, the first one a few more: keep the object next to the connection.
    """

    def __init__(self, driver_connection: Any) -> None:
        self._connection = driver_connection
        self._poll: select.poll | None = None

    def closed_by_server(self) -> bool:
        """Return True if the server seems to have closed the connection while it was idle.

        False proves little: a peer can vanish silently. An idle connection has nothing to read except the end of the
        stream or the server's last message. A ping clears up the third case, a harmless notice. psycopg notices a close
        at its next statement, asyncpg when the event loop reads the socket: on a busy loop, after the checkout.
        """
        if is_closed(self._connection):
            return True
        if self._poll is None:
            self._poll = select.poll()  # select() fails for descriptors above 1023
            self._poll.register(file_descriptor(self._connection), select.POLLIN)
        return bool(self._poll.poll(0))


def ping(dialect: Any, connection: DBAPIConnection, *, within: float) -> bool:
    """Ping the server in one round trip; return True if it answered, False if the connection is broken.

    Raise TimeoutError after `within` seconds; the connection is unusable then. Must be called in a greenlet of
    SQLAlchemy's.
    """
    driver_connection: Any = dialect.get_driver_connection(connection)
    loop = asyncio.get_running_loop()
    expired = False
    expiry: asyncio.Handle

    def expire(iterations_left: int) -> None:
        nonlocal expiry, expired
        if iterations_left > 0:
            expiry = loop.call_soon(expire, iterations_left - 1)
            return
        expired = True
        # Not by cancellation: psycopg would then send a cancel request, and wait up to ten seconds for it.
        shut_down(driver_connection)

    expiry = loop.call_later(within, expire, EXTRA_ITERATIONS)
    try:
        if dialect.driver == "asyncpg":
            # SQLAlchemy's ping opens a transaction: three round trips. A simple query takes one, also behind a pooler.
            # asyncpg 0.32 fails with an AttributeError at the answer to ";", so it is a SELECT.
            await_only(driver_connection.execute("SELECT 1"))
        else:
            dialect.do_ping(connection)
    except Exception:
        if expired:
            raise TimeoutError from None
        if not is_closed(driver_connection):
            logger.exception("the ping of an open connection failed; the connection is replaced")
        return False
    finally:
        expiry.cancel()
    return not expired  # the answer can arrive in the iteration in which the socket was shut down


def shut_down(driver_connection: Any) -> None:
    """Shut the connection's socket down without a protocol message. A pending statement then fails at once."""
    if not is_closed(driver_connection):
        with suppress(OSError), socket.socket(fileno=os.dup(file_descriptor(driver_connection))) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)


def is_closed(driver_connection: Any) -> bool:
    """Return True if the driver knows that the connection is closed. Makes no system call."""
    closed = getattr(driver_connection, "is_closed", None)  # a method of asyncpg's; psycopg has a property `closed`
    if closed is None:
        return bool(driver_connection.closed)
    # A closing transport has released its descriptor, which another socket may have by now. asyncpg learns of that in
    # the next event-loop iteration.
    return bool(closed()) or bool(driver_connection._transport.is_closing())


def socket_of(connection: Any) -> Any:
    """Return the socket of an open connection of asyncpg's."""
    return connection._transport.get_extra_info("socket")


def file_descriptor(driver_connection: Any) -> int:
    """Return the descriptor of the socket of an open connection."""
    pgconn = getattr(driver_connection, "pgconn", None)
    if pgconn is None:  # asyncpg
        return int(socket_of(driver_connection).fileno())
    return int(pgconn.socket)


async def check_accepts_connections(url: URL) -> None:
    """Check that a server of the URL accepts connections, without opening one (as `pg_isready` does).

    Raise DatabaseUnavailable.
    """
    # At the same time: one that vanished would delay the answer of another one.
    pings = [
        asyncio.to_thread(psycopg.pq.PGconn.ping, conninfo(each, connect_timeout=2).encode())  # libpq's minimum
        for each in hosts(url)
    ]
    for answered in asyncio.as_completed(pings):
        if (answer := await answered) == psycopg.pq.Ping.OK:
            return
    raise DatabaseUnavailable(f"the server does not accept connections: {psycopg.pq.Ping(answer).name}")
