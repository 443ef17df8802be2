"""Read samples from a collector's metrics."""

from prometheus_client import Metric

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: list[Metric]) -> Samples:
    """Return the values by name and labels."""
    return {
        (sample.name, tuple(sample.labels.items())): sample.value for metric in metrics for sample in metric.samples
    }


def total(metrics: list[Metric], name: str, **labels: str) -> float:
    """Return the sum of the samples of this name that have at least these labels."""
    return sum(
        value
        for (sample_name, sample_labels), value in samples(metrics).items()
        if sample_name == name and labels.items() <= dict(sample_labels).items()
    )
