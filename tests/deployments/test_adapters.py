"""Ray's own classes of metrics, without a cluster: they take what they are given, and show it nowhere."""

import pytest

from deployments.adapters import RayMetrics
from serve_app.metrics import CATALOGUE, SEARCH_FAILURES, Metrics


def test_ray_takes_every_metric_of_the_catalogue() -> None:
    metrics: Metrics = RayMetrics()
    for metric in CATALOGUE:
        labels = dict.fromkeys(metric.labels, "any")
        match metric.kind:
            case "counter":
                metrics.add(metric, 2, **labels)
                metrics.add(metric, 0, **labels)
            case "gauge":
                metrics.set(metric, 0.5, **labels)
            case "histogram":
                metrics.observe(metric, 0.5, **labels)


def test_a_label_that_is_forgotten_is_an_error() -> None:
    with pytest.raises(ValueError, match="error"):
        RayMetrics().add(SEARCH_FAILURES)
