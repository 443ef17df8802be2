"""The pool's metrics add span events only where OpenTelemetry's SDK can record them."""

import pytest

from app import main
from app.observability.pool_metrics import PoolMetrics
from app.observability.span_events import TracedPoolMetrics


@pytest.mark.parametrize(("has_tracer", "expected"), [(True, TracedPoolMetrics), (False, PoolMetrics)])
def test_pool_is_traced_if_the_sdk_is_installed(
    monkeypatch: pytest.MonkeyPatch, has_tracer: bool, expected: type[PoolMetrics]
) -> None:
    monkeypatch.setattr(main, "HAS_TRACER", has_tracer)

    assert type(main._new_pool_metrics("api")) is expected
