"""Values of the metrics of this process."""

from prometheus_client import REGISTRY


def cancelled_requests(reason: str) -> float:
    """Return how many requests were cancelled for the reason; -1 if that series does not exist."""
    value = REGISTRY.get_sample_value("http_cancelled_requests_total", {"reason": reason})
    return -1 if value is None else value
