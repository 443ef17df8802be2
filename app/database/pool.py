"""The connection pool that knows its own state: how many connections are idle, used and waited for."""

from typing import NamedTuple

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, Pool

from app.errors import PoolExhausted


class PoolState(NamedTuple):
    """One look at a pool, in connections."""

    size: int
    max_overflow: int
    idle: int
    used: int
    waiting: int

    @property
    def overflow(self) -> int:
        """Open connections beyond `size`."""
        return max(0, self.idle + self.used - self.size)


class HeadroomPool(AsyncAdaptedQueuePool):
    """SQLAlchemy's async queue pool, which also counts who waits and says so when nobody can be served."""

    _waiting = 0

    @property
    def state(self) -> PoolState:
        idle = self.checkedin()
        # `overflow()` runs from -size (nothing open) to max_overflow (everything open). It also counts a connection
        # that is still being opened, and so does `used`: that slot is taken.
        opened = self.size() + self.overflow()
        return PoolState(self.size(), self._max_overflow, idle, opened - idle, self._waiting)

    def _do_get(self) -> ConnectionPoolEntry:
        if self.checkedin() or self.overflow() < self._max_overflow:
            return super()._do_get()
        self._waiting += 1
        try:
            return super()._do_get()
        except PoolTimeout:
            s = self.state
            raise PoolExhausted(
                f"no connection after {self.timeout():.1f} s "
                f"(size={s.size} overflow={s.overflow} in_use={s.used} waiting={s.waiting - 1})"
            ) from None
        finally:
            self._waiting -= 1


def pool_state(engine: AsyncEngine) -> PoolState | None:
    """The state of the engine's pool now, or None where it has no bounded pool (SQLite in memory).

    Always through the engine: `dispose()` gives it a new pool.
    """
    pool: Pool = engine.pool
    return pool.state if isinstance(pool, HeadroomPool) else None
