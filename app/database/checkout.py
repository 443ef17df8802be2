"""Checkouts for a single statement outside a transaction: without SQLAlchemy's proxy where the pool allows it."""

import asyncio
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from app.database._sqlalchemy import entry_of, pool_of
from app.database.answers import has_ended
from app.database.lanes import current_work
from app.database.liveness import shut_down
from app.database.pool import BoundedPool


class Checkout(NamedTuple):
    """A connection that is held for one statement. `proxy` is SQLAlchemy's; None if the pool gave out the bare entry.

    Exactly one of `release()`, `settle()`, `abort()` and `abandon()` must be called.
    """

    pool: BoundedPool
    record: ConnectionPoolEntry
    proxy: PoolProxiedConnection | None = None

    @property
    def driver_connection(self) -> Any:
        """Return asyncpg's or psycopg's connection."""
        return self.record.driver_connection

    async def release(self) -> None:
        """Return the connection to the pool. It must have no transaction."""
        pool, record, proxy = self
        if proxy is not None:
            if not pool.return_proxy_nowait(proxy):
                await greenlet_spawn(proxy.close)
        elif not pool.return_nowait(record):
            await greenlet_spawn(pool.return_entry, record)

    async def settle(self, error: asyncio.CancelledError) -> None:
        """Return the connection when its cancelled statement has ended. If that takes too long, close it."""
        if await has_ended(self.driver_connection):
            await self.release()
        else:
            shut_down(self.driver_connection)  # a graceful close could take as long again
            await self.abort(error)

    async def abort(self, error: BaseException) -> None:
        """Close the connection, which is unusable after `error`, and free its slot."""

        def close() -> None:
            pool, record, proxy = self
            if proxy is not None:
                proxy.invalidate(error)
                proxy.close()
                return
            try:
                record.invalidate(error)
            finally:
                pool.return_entry(record)

        await greenlet_spawn(close)

    def abandon(self) -> None:
        """Return the connection in the middle of a statement, where nothing can be awaited."""
        if self.proxy is None:  # SQLAlchemy's proxy does this itself when it is garbage-collected
            # Closing it would have to be awaited: the next checkout finds the socket shut down, and replaces it.
            shut_down(self.driver_connection)
            self.pool.return_from_anywhere(self.record)


async def check_out(engine: AsyncEngine, work: str = "") -> Checkout:
    """Check out a connection of the engine's BoundedPool. Raise PoolExhausted, DatabaseUnavailable.

    `work` is the text of the statement that will run, or another name under which the pool watches its cost.
    """
    pool: Pool = engine.sync_engine.pool
    assert isinstance(pool, BoundedPool)
    record = pool.checkout_nowait(work) or await pool.checkout_queued(work)
    if record is not None:
        return Checkout(pool, record)
    outer = current_work.set(work)
    try:
        proxy: Any = await engine.raw_connection()
    finally:
        current_work.reset(outer)
    pool_of(proxy).expect_answer(entry_of(proxy))
    # The proxy's own pool: while this caller waited, `dispose()` may have given the engine another one.
    return Checkout(pool_of(proxy), entry_of(proxy), proxy)
