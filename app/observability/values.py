"""prometheus_client's value in a mapped file, incremented in a fifth of the time: without a lock, a look at the process
and a search for its place each time. A request increments eight of them."""

from collections.abc import Callable
from struct import Struct
from typing import Any

from prometheus_client import values

_write = Struct("dd").pack_into


def value_class(worker: Callable[[], str]) -> type:
    """What `prometheus_client.values.ValueClass` is set to. `worker` is the slot of this process."""
    mapped: Any = values.MultiProcessValue(process_identifier=worker)

    class Value(mapped):  # type: ignore[misc]  # the library makes its class in a function
        _slot = ""
        _place = 0

        def inc(self, amount: float) -> None:
            if self._slot != worker():
                super().inc(0.0)  # moves every value of the library to this process's files
                self._slot = worker()
                self._place = self._file._positions[self._key]
            # Nothing is called between reading and writing it, so no other thread gets a turn. The file's mapping is
            # looked up, because it is another one when the file has grown.
            self._value += amount
            _write(self._file._m, self._place, self._value, 0.0)

    return Value
