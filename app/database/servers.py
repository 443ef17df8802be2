"""The servers of a database URL: each connection goes to the first one that accepts it, as libpq does it.

Not left to the drivers: asyncpg has one timeout for all hosts together, and libpq has whole seconds, so a host that
vanished would use up the deadline of the checkout. And a server that was found is tried first the next time.
"""

import random
from collections.abc import Callable
from functools import partial
from traceback import clear_frames
from typing import Any, TypeVar

from sqlalchemy import URL
from sqlalchemy.engine.interfaces import Dialect

from app.database.conninfo import driver_arguments, hosts, parameters
from app.database.deadline import call_within, seconds_left
from app.errors import DatabaseUnavailable, first_line

Connection = TypeVar("Connection")


class Servers:
    """The servers of a URL, with the arguments of the dialect's `connect()` for each. `own` override the URL's."""

    def __init__(self, dialect: Dialect, url: URL, own: dict[str, Any]) -> None:
        # asyncpg and libpq prefer a standby by themselves: they try all hosts before they choose one.
        options = parameters(url)
        urls = [url] if options.get("target_session_attrs") == "prefer-standby" else hosts(url)
        self._arguments = [driver_arguments(dialect, each, own) for each in urls]
        self._names = [str(parameters(each).get("host", "")) for each in urls]
        self._first = 0
        if options.get("load_balance_hosts") == "random":
            self._first = random.randrange(len(urls))  # noqa: S311 - not a secret

    def connect(self, connect: Callable[[dict[str, Any]], Connection]) -> Connection:
        """Call `connect` with the arguments of one server after the other, until one accepts; return its result.

        Each gets its share of the time that is left until the deadline of the checkout. With several servers, raise
        DatabaseUnavailable with the reason of each. Must be called in a greenlet of SQLAlchemy's.
        """
        number = len(self._arguments)
        if number == 1:
            return connect(self._arguments[0])
        reasons = []
        for attempt in range(number):
            index = (self._first + attempt) % number
            try:
                connection = call_within(seconds_left() / (number - attempt), partial(connect, self._arguments[index]))
            except Exception as error:  # noqa: BLE001 - whatever it is, another server may accept
                reason = "did not answer in time" if isinstance(error, TimeoutError) else first_line(error)
                reasons.append(f"{self._names[index]}: {reason}")
                if error.__cause__ is not None:  # closes the socket of a cancelled connect: engine._clear_frames()
                    clear_frames(error.__cause__.__traceback__)
            else:
                self._first = index
                return connection
        raise DatabaseUnavailable(f"cannot connect: {'; '.join(reasons)}")
