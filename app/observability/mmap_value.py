"""prometheus_client's value in a memory-mapped file, with an increment that takes a third of the time.

The library's own `inc()` takes a lock, checks the process and looks up the value's offset each time. A request makes
eight increments (docs/decisions/0005-slot-files.md).
"""

from collections.abc import Callable
from struct import Struct
from typing import Any

from prometheus_client import values

_pack = Struct("dd").pack


def value_class(current_slot: Callable[[], str]) -> type:
    """Return a class for `prometheus_client.values.ValueClass`. `current_slot` names this process's files."""
    library_class: Any = values.MultiProcessValue(process_identifier=current_slot)

    class Value(library_class):  # type: ignore[misc]  # the library creates its class in a function
        _slot = ""
        _bytes = slice(0)

        def inc(self, amount: float) -> None:
            if self._slot != current_slot():
                super().inc(0.0)  # moves every value of the library to this process's files
                self._slot = current_slot()
                offset = self._file._positions[self._key]
                self._bytes = slice(offset, offset + 16)
            # No lock: no call lies between the read and the write, so no other thread can run. `_m` is read each time
            # because a file that grows is mapped again. Not Struct.pack_into: it writes zeros first, and the exporter
            # would read them as a reset of the counter.
            self._value += amount
            self._file._m[self._bytes] = _pack(self._value, 0.0)

    return Value
