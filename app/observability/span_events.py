"""Waits for a lane and for a connection, as events of the OpenTelemetry span in progress.

Only for processes that have OpenTelemetry's SDK: without it, no span records anything.
"""

from opentelemetry import trace

from app.lanes import LaneName
from app.observability.pool_metrics import PoolMetrics

ACQUIRED = "db.client.connection.acquired"
LANE_ENTERED = "db.lane.entered"


class TracedPoolMetrics(PoolMetrics):
    """Metrics of a pool that also add an event to the span of the caller. Waits are seconds."""

    def acquired(self, seconds: float) -> None:
        """Record a checkout. Its time includes the lane's queue, the pool's queue, a ping and a connect."""
        super().acquired(seconds)
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(
                ACQUIRED, {"db.client.connection.pool.name": self.pool, "db.client.connection.wait_time": seconds}
            )

    def lane_entered(self, lane: LaneName, seconds: float) -> None:
        """Record a checkout that its lane has admitted."""
        super().lane_entered(lane, seconds)
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(LANE_ENTERED, {"db.lane": lane, "db.lane.wait_time": seconds})
