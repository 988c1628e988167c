"""What sessions leave in metrics: how many there are, and how long executions take by ending.

The caller has a span for each cell; there is none here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.metrics import CallbackOptions, Observation

from common import telemetry_names as names
from common.telemetry import meter
from sandbox_service.execution_stream import Ended, Event
from sandbox_service.memory_watch import MemoryGauge


class SessionTelemetry:
    """The metrics of the service."""

    def __init__(self, count_by_state: Callable[[], Mapping[str, int]], gauge: MemoryGauge) -> None:
        """Take what counts the live sessions, and what knows their memory."""
        metrics = meter(__name__)
        self._count_by_state = count_by_state
        self._gauge = gauge
        self._duration = metrics.create_histogram(names.METRIC_SANDBOX_EXEC_DURATION, unit="s")
        metrics.create_observable_gauge(names.METRIC_SANDBOX_SESSIONS, callbacks=[self._sessions])
        metrics.create_observable_gauge(
            names.METRIC_SANDBOX_MEMORY, callbacks=[self._memory], unit="By"
        )
        metrics.create_observable_counter(
            names.METRIC_SANDBOX_MEMORY_SHORTAGES, callbacks=[self._shortages]
        )

    @contextmanager
    def execution(self) -> Iterator[Callable[[int | Event], None]]:
        """Observe one execution; the block calls what it gets with each event."""
        ending = "none"
        started = time.perf_counter()

        def observe(event: int | Event) -> None:
            nonlocal ending
            if isinstance(event, Ended):
                ending = event.frame.ending

        try:
            yield observe
        finally:
            self._duration.record(time.perf_counter() - started, {names.STATUS: ending})

    def _sessions(self, _options: CallbackOptions) -> Iterable[Observation]:
        # Called by an exporter's thread; the counts are plain reads.
        for state, count in self._count_by_state().items():
            yield Observation(count, {"state": state})

    def _memory(self, _options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._gauge.bytes_used, {names.KIND: "used"})
        yield Observation(self._gauge.bytes_max, {names.KIND: "max"})

    def _shortages(self, _options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._gauge.evictions, {names.KIND: "evicted"})
        yield Observation(self._gauge.stops, {names.KIND: "stopped"})
