"""Prometheus metrics of a server, of one process or of all its workers."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client import values as value_classes
from prometheus_client.multiprocess import MultiProcessCollector

from ham_dist.serving.id_batch import IdBatch
from ham_dist.serving.server.model import ServedModel

_SECONDS = tuple(scale * step for scale in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1) for step in (1, 2, 3, 5, 7))
_ROWS = tuple(2**power for power in range(13))


def share_by_slot(slot: int) -> None:
    """Makes metrics of this process readable for all workers, before the first one is created.

    They are in files of $PROMETHEUS_MULTIPROC_DIR, named after the worker's slot and not after its process: a
    worker that replaces a killed one continues its counts, and files do not pile up.
    """
    value_classes.ValueClass = value_classes.MultiProcessValue(process_identifier=lambda: slot)


class Metrics:
    """The metrics of a server.

    Args:
        model: Name of the model.
        folder: Folder of all workers' metrics; None for one process.
    """

    def __init__(self, model: str, folder: Path | None = None) -> None:
        self._model, self._folder = model, folder
        own = CollectorRegistry()
        self._registry = own
        if folder is None:
            PlatformCollector(registry=own)
            ProcessCollector(registry=own)
        self._requests = Counter(
            "ham_dist_requests", "Requests to score records.", ["protocol", "status"], registry=own
        )
        self._rows = Counter("ham_dist_rows", "Records scored.", registry=own)
        self._seconds = Histogram(
            "ham_dist_request_seconds",
            "Seconds from the head of a request to its answer.",
            ["protocol"],
            buckets=_SECONDS,
            registry=own,
        )
        self._model_seconds = Histogram(
            "ham_dist_model_seconds", "Seconds of the model for a batch.", buckets=_SECONDS, registry=own
        )
        self._batch_rows = Histogram(
            "ham_dist_batch_rows", "Records of a batch.", buckets=_ROWS, registry=own
        )
        self._queue = Gauge(
            "ham_dist_queue_rows",
            "Records that are waiting or running.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self._info = Gauge(
            "ham_dist_model_info",
            "Workers that serve a version.",
            ["model", "version", "precision", "runtime"],
            multiprocess_mode="livesum",
            registry=own,
        )
        self._failures = Counter(
            "ham_dist_version_failures",
            "Versions that were activated and could not be served.",
            ["version"],
            registry=own,
        )
        self._values = Counter("ham_dist_values", "Values of scored records.", ["field"], registry=own)
        self._unknown = Counter(
            "ham_dist_unknown_values", "Values of scored records that are unknown.", ["field"], registry=own
        )
        self._children: dict[tuple[str, int], Any] = {}
        self._timers: dict[str, Any] = {}
        self._counting = threading.Lock()
        self._counts: dict[str, tuple[int, int]] = {}
        """Values and unknown values, by field."""
        self._added: dict[str, tuple[int, int]] = {}
        """Those of them that the counters have."""

    def request(self, protocol: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        key = protocol, status
        if (child := self._children.get(key)) is None:
            child = self._children[key] = self._requests.labels(protocol, str(status))
        child.inc()
        if status == 200:
            if (timer := self._timers.get(protocol)) is None:
                timer = self._timers[protocol] = self._seconds.labels(protocol)
            timer.observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """Counts a batch that ran."""
        self._rows.inc(rows)
        self._model_seconds.observe(seconds)
        self._batch_rows.observe(rows)

    def serves(self, model: ServedModel, before: ServedModel | None) -> None:
        """Records that a version serves in place of the one before."""
        if before is not None:
            self._gauge_of(before).set(0)
        self._gauge_of(model).set(1)

    def _gauge_of(self, model: ServedModel) -> Any:
        precision = model.scorer.bundle.manifest.precision
        return self._info.labels(self._model, model.version, precision, model.scorer.runtime.name)

    def failed(self, version: str) -> None:
        """Counts a version that could not be served."""
        self._failures.labels(version).inc()

    def count(self, model: ServedModel, batch: IdBatch) -> None:
        """Counts the values of a batch, on any thread.

        Counters of all fields take longer than a small batch, so `tick` adds the counts to them.
        """
        found = batch.counts()
        with self._counting:
            for field, values, unknown in zip(model.fields, *found, strict=True):
                before = self._counts.get(field, (0, 0))
                self._counts[field] = before[0] + values, before[1] + unknown

    def tick(self, queue_rows: int) -> None:
        """Updates what is not updated for each request; called each second and before metrics are read."""
        self._queue.set(queue_rows)
        for field, (values, unknown) in list(self._counts.items()):
            before = self._added.get(field, (0, 0))
            self._values.labels(field).inc(values - before[0])
            self._unknown.labels(field).inc(unknown - before[1])
            self._added[field] = values, unknown

    def _all(self) -> CollectorRegistry:
        if self._folder is None:
            return self._registry
        shared = CollectorRegistry()
        MultiProcessCollector(shared, path=str(self._folder))
        return shared

    def text(self) -> bytes:
        """Returns the metrics of all workers in Prometheus' text format."""
        return generate_latest(self._all())

    def summary(self) -> dict[str, Any]:
        """Returns what the status page shows: sums over all workers."""
        found: dict[str, Any] = {"requests": {}, "rows": 0, "queue_rows": 0, "buckets": {}, "unknown": {}}
        found |= {"values": {}, "workers": {}, "failures": {}}
        for sample in _samples(self._all()):
            name, labels, value = sample.name, sample.labels, sample.value
            if name == "ham_dist_requests_total":
                status = labels["status"]
                found["requests"][status] = found["requests"].get(status, 0) + value
            elif name == "ham_dist_rows_total":
                found["rows"] = value
            elif name == "ham_dist_queue_rows":
                found["queue_rows"] = value
            elif name == "ham_dist_request_seconds_bucket":
                found["buckets"][labels["le"]] = found["buckets"].get(labels["le"], 0) + value
            elif name == "ham_dist_model_info":
                found["workers"][labels["version"]] = value
            elif name == "ham_dist_version_failures_total":
                found["failures"][labels["version"]] = value
            elif name == "ham_dist_values_total":
                found["values"][labels["field"]] = value
            elif name == "ham_dist_unknown_values_total":
                found["unknown"][labels["field"]] = value
        found["buckets"] = sorted(
            ([float(bound), count] for bound, count in found["buckets"].items() if bound != "+Inf"),
        )
        return found


def _samples(registry: CollectorRegistry) -> Iterable[Any]:
    for metric in registry.collect():
        yield from metric.samples
