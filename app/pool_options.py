"""The options of the connection pool and their defaults, declared once. The pool and the settings both use them."""

from dataclasses import dataclass

from app.lanes import LaneSpec

# The default of `ping_after`, and of its setting, which is never None.
PING_AFTER = 0.5


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The options of `BoundedPool`. Times are seconds, sizes are connections.

    A setting whose field in `app/settings.py` is marked `_sets_option("...")` sets the option of that name. So a new
    pool setting is a field here and a field there.
    """

    size: int = 5
    """Connections that stay open when they are not needed."""
    max_overflow: int = 10
    """Connections that may be opened beyond `size` under load."""
    timeout: float = 3.0
    """Deadline of a checkout: the queue, a ping and a connect included."""
    statement_deadline: float | None = None
    """Time without an answer to a statement after which its connection is closed. None: 2 s more than the server's
    `statement_timeout`, and no limit if the server has none."""
    max_waiters: int = 100
    """Callers that may wait in the queue; further ones are refused at once."""
    queue_target: float = 0.05
    """Longest acceptable wait in the queue. If all waiters of one `queue_interval` wait longer, it is overloaded, and
    waiters that have waited twice as long are refused (CoDel)."""
    queue_interval: float = 1.0
    """Time after which a queue that stays above `queue_target` counts as overloaded."""
    expensive_share: float = 1.0
    """Connections that the expensive lane may use at a time. Less than 1: that share of the time, one connection."""
    expensive_max_waiters: int = 20
    """Statements that may wait for the expensive lane; further ones are refused at once."""
    expensive_timeout: float = 3.0
    """Deadline of a checkout in the expensive lane: the lane's queue and the pool's included."""
    expensive_after: float = 0.05
    """Time a statement holds a connection from which on it may be moved to the expensive lane, if it takes a multiple
    of all others. 0: none is moved."""
    own_lanes: tuple[LaneSpec, ...] = ()
    """Lanes of the application, next to those of Headroom."""
    recycle: int = 3600
    """Age at which a connection is replaced, at the latest. Up to a tenth of it is taken off at random."""
    ping_after: float | None = PING_AFTER
    """Idle time after which a connection is pinged before it is checked out. None: never."""
    shrink_after: float = 20.0
    """Idle time after which a connection beyond `size` is closed."""
    coalesce_max: int = 64
    """Reads by key that one statement answers, at most, or rows that one inserts. 1: nothing shares a statement."""
    coalesce_in_flight: int = 2
    """Statements of one kind under way, from which on further reads or rows of that kind wait for each other."""
    one_per_task: bool = False
    """Raise RuntimeError when an asyncio task that holds a connection checks out a second one."""

    @property
    def max_size(self) -> int:
        """Return the largest number of connections that may be open."""
        return self.size + self.max_overflow
