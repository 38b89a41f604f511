"""What the service counts, as Prometheus text at /metrics.

Drift shows in it: the share of each class, the share flagged as outliers and the distribution of
uncertainty, over time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.predictions import Prediction

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
NATS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one service."""

    def __init__(self, version: str) -> None:
        self._registry = registry = CollectorRegistry()
        requests = Counter(
            "http_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        seconds = Histogram(
            "http_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("path",),
            buckets=SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge(
            "requests_in_progress", "Requests accepted and not answered.",
            registry=registry,
        )  # fmt: skip
        self.batch_sizes = Histogram(
            "batch_images", "Images in one run of the network.", buckets=BATCH_SIZES,
            registry=registry,
        )  # fmt: skip
        predicted = Counter(
            "predicted_images", "Images by likeliest class.", ("class_name",), registry=registry
        )
        # Looking a labelled counter up takes longer than counting.
        self._requests_of = functools.cache(lambda path, status: requests.labels(path, str(status)))
        self._seconds_of = functools.cache(seconds.labels)
        self._predicted_as = functools.cache(predicted.labels)
        self._flagged = Counter("outlier_images", "Images flagged as outliers.", registry=registry)
        self._uncertainty = Histogram(
            "uncertainty_nats", "Entropy of the probabilities.", buckets=NATS, registry=registry
        )
        self._refused = Counter(
            "refused_files", "Files that were not read, by status.", ("status",), registry=registry
        )
        Gauge("model_info", "The model that is served.", ("version",), registry=registry).labels(
            version
        ).set(1)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that is answered, `seconds` after it came."""
        self._requests_of(path, status).inc()
        self._seconds_of(path).observe(seconds)

    def count_predictions(self, predictions: Sequence[Prediction]) -> None:
        """Count what was predicted."""
        for one in predictions:
            self._predicted_as(one.class_name).inc()
            self._uncertainty.observe(one.uncertainty)
            if one.outlier:
                self._flagged.inc()

    def count_refusal(self, status: int) -> None:
        """Count a file that was not read."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
