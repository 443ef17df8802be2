"""Whether a connection, or a server, is alive. What is known without asking, and what takes a round trip."""

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

from app.database.libpq import conninfo
from app.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

# Where the process stood still, the answer and the end of its time come in one turn of the event loop. What is there to
# read gets a few turns more. Without one, 4 of 10 answers came too late; with one, none, for either driver and loop.
_TURNS_TO_READ = 3


class Line:
    """The line to the server that an open connection has, and what is known of it without asking.

    Looking costs a system call, and the first look a few more; so who looks often keeps it, beside the connection.
    """

    def __init__(self, driver_connection: Any) -> None:
        self._connection = driver_connection
        self._poll: select.poll | None = None

    def hung_up(self) -> bool:
        """Whether the server seems to have closed it while it was idle. False says little: a peer can vanish silently.

        An idle connection has nothing to read, except the end of the stream or the server's last words. (Or a harmless
        notice: then a ping clears it up.) psycopg looks when it is asked something, asyncpg when the event loop gets to
        it, and on a busy one that can be after the connection was handed out.
        """
        if is_closed(self._connection):
            return True
        if self._poll is None:
            self._poll = select.poll()  # select() fails for descriptors above 1023
            self._poll.register(_descriptor(self._connection), select.POLLIN)
        return bool(self._poll.poll(0))


def answers(dialect: Any, connection: DBAPIConnection, *, within: float) -> bool:
    """Ask the server, in one round trip. TimeoutError after so many seconds. To be called in SQLAlchemy's greenlet."""
    driver_connection: Any = dialect.get_driver_connection(connection)
    loop = asyncio.get_running_loop()
    hung_up = False
    expiry: asyncio.Handle

    def time_is_up(turns: int) -> None:
        nonlocal expiry, hung_up
        if turns > 0:
            expiry = loop.call_soon(time_is_up, turns - 1)
            return
        hung_up = True
        # Cancelling would not do: psycopg then asks the server to cancel, and waits for that for up to ten seconds.
        hang_up(driver_connection)

    expiry = loop.call_later(within, time_is_up, _TURNS_TO_READ)
    try:
        if dialect.driver == "asyncpg":
            # SQLAlchemy's ping puts a transaction around it, which makes three. A simple query needs none, also behind
            # a pooler that gives each transaction another server. (";" would do for the server, but asyncpg 0.32 fails
            # with an AttributeError at its answer.)
            await_only(driver_connection.execute("SELECT 1"))
        else:
            dialect.do_ping(connection)
    except Exception:
        if hung_up:
            raise TimeoutError from None
        if not is_closed(driver_connection):  # it lives: what failed is the question, and each one will
            logger.exception("a connection could not be tested, and is replaced")
        return False
    finally:
        expiry.cancel()
    return not hung_up  # an answer can come as late as that


def hang_up(driver_connection: Any) -> None:
    """End the conversation without a word, to the surprise of whoever waits for an answer."""
    if not is_closed(driver_connection):
        with suppress(OSError), socket.socket(fileno=os.dup(_descriptor(driver_connection))) as line:
            line.shutdown(socket.SHUT_RDWR)


def is_closed(driver_connection: Any) -> bool:
    """Whether the driver knows that it is: no system call, and no news of the server."""
    closed = getattr(driver_connection, "is_closed", None)  # asyncpg's; psycopg has a property
    if closed is None:
        return bool(driver_connection.closed)
    # A transport that is closing has given its descriptor back, and somebody else may have it by now; asyncpg is told
    # in the next turn of the loop.
    return bool(closed()) or bool(driver_connection._transport.is_closing())


def _descriptor(driver_connection: Any) -> int:
    pgconn = getattr(driver_connection, "pgconn", None)
    if pgconn is None:  # asyncpg
        return int(driver_connection._transport.get_extra_info("socket").fileno())
    return int(pgconn.socket)


async def knock(url: URL) -> None:
    """Ask the server whether it takes connections, as `pg_isready` does: without signing in, so without having one.

    Raises DatabaseUnavailable.
    """
    address = conninfo(url, connect_timeout=2)  # the least that libpq takes
    answer = await asyncio.to_thread(psycopg.pq.PGconn.ping, address.encode())
    if answer != psycopg.pq.Ping.OK:
        raise DatabaseUnavailable(f"the server does not take connections: {psycopg.pq.Ping(answer).name}")
