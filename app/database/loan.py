"""Loans: how a statement outside a transaction comes to a connection of the pool, and how the pool gets it back."""

from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from app.database.liveness import hang_up
from app.database.pool import HeadroomPool


class Loan(NamedTuple):
    """A connection that is held for one statement. `proxy` is SQLAlchemy's, where it came with one."""

    pool: HeadroomPool
    record: ConnectionPoolEntry
    proxy: PoolProxiedConnection | None = None

    @property
    def driver_connection(self) -> Any:
        return self.record.driver_connection

    async def give_back(self) -> None:
        """No transaction was begun on it."""
        pool, record, proxy = self
        if proxy is not None:
            if not pool.close_now(proxy):
                await greenlet_spawn(proxy.close)
        elif not pool.take_back(record):
            await greenlet_spawn(pool._do_return_conn, record)

    async def break_off(self, error: BaseException) -> None:
        """Close it, for nobody may have it again, and give its place in the pool back."""

        def close() -> None:
            pool, record, proxy = self
            if proxy is not None:
                proxy.invalidate(error)
                proxy.close()
                return
            try:
                record.invalidate(error)
            finally:
                pool._do_return_conn(record)

        await greenlet_spawn(close)

    def drop(self) -> None:
        """Let go of it in the middle of a statement, where nothing can be waited for."""
        if self.proxy is None:  # SQLAlchemy's proxy does this when it is collected
            # Who wants it next finds that it was hung up on, and closes it: that, too, would have to be waited for.
            hang_up(self.driver_connection)
            self.pool._do_return_conn(self.record)


async def borrow(engine: AsyncEngine) -> Loan:
    """Raises what the engine's pool raises, which is a HeadroomPool."""
    pool: Pool = engine.pool
    assert isinstance(pool, HeadroomPool)
    record = pool.lend()
    if record is not None:
        return Loan(pool, record)
    proxy = await engine.raw_connection()
    # That of now: while this one waited, `dispose()` may have given the engine another pool.
    return Loan(proxy._pool, proxy._connection_record, proxy)
