"""Waits for a lane and for a connection, as events of the OpenTelemetry span in progress, and as exemplars.

Only for processes that have OpenTelemetry's SDK: without it, no span records anything.
"""

from opentelemetry import trace

from app.database.pool_events import PoolState
from app.lanes import LaneName
from app.observability import catalogue
from app.observability.exemplars import Exemplars
from app.observability.pool_metrics import PoolMetrics

ACQUIRED = "db.client.connection.acquired"
LANE_ENTERED = "db.lane.entered"


class TracedPoolMetrics(PoolMetrics):
    """Metrics of a pool that also add an event to the span of the caller. Waits are seconds.

    The histogram of waits for a connection has exemplars: the traces of sampled spans.
    """

    def __init__(self, pool: str) -> None:
        super().__init__(pool)
        self._exemplars = Exemplars(catalogue.POOL_WAIT, pool=pool)

    def publish(self, state: PoolState) -> None:
        """Set the gauges to a snapshot of the pool, and write new exemplars."""
        super().publish(state)
        self._exemplars.publish()

    def acquired(self, seconds: float) -> None:
        """Record a checkout. Its time includes the lane's queue, the pool's queue, a ping and a connect."""
        super().acquired(seconds)
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(
                ACQUIRED, {"db.client.connection.pool.name": self.pool, "db.client.connection.wait_time": seconds}
            )
            context = span.get_span_context()
            if context.trace_flags.sampled:
                self._exemplars.keep(
                    seconds, trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
                )

    def lane_entered(self, lane: LaneName, seconds: float) -> None:
        """Record a checkout that its lane has admitted."""
        super().lane_entered(lane, seconds)
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(LANE_ENTERED, {"db.lane": lane, "db.lane.wait_time": seconds})
