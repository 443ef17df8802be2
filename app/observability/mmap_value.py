"""prometheus_client's value in a mapped file, incremented in a third of the time: without a lock, a look at the process
and a search for its place each time. A request increments eight of them."""

from collections.abc import Callable
from struct import Struct
from typing import Any

from prometheus_client import values

_pack = Struct("dd").pack


def value_class(worker: Callable[[], str]) -> type:
    """What `prometheus_client.values.ValueClass` is set to. `worker` is the slot of this process."""
    mapped: Any = values.MultiProcessValue(process_identifier=worker)

    class Value(mapped):  # type: ignore[misc]  # the library makes its class in a function
        _slot = ""
        _place = slice(0)

        def inc(self, amount: float) -> None:
            if self._slot != worker():
                super().inc(0.0)  # moves every value of the library to this process's files
                self._slot = worker()
                place = self._file._positions[self._key]
                self._place = slice(place, place + 16)
            # Nothing is called between reading and writing it, so no other thread gets a turn. The file's mapping is
            # looked up, because it is another one when the file has grown. Struct.pack_into would be quicker still, but
            # writes zeros first, and the exporter, which reads without a lock, would see a counter that began anew.
            self._value += amount
            self._file._m[self._place] = _pack(self._value, 0.0)

    return Value
