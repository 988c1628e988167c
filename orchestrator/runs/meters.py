"""The metrics of runs. None is labelled by run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fathom.orchestrator.v1.run_pb2 import Run

from common import telemetry_names as names
from common.telemetry import meter


class RunMeters:
    """The instruments; one object a process."""

    def __init__(self) -> None:
        runs = meter(__name__)
        self._runs = runs.create_counter(names.METRIC_RUNS)
        self._active = runs.create_up_down_counter(names.METRIC_RUNS_ACTIVE)
        self._duration = runs.create_histogram(names.METRIC_RUN_DURATION, unit="s")
        self._queue_wait = runs.create_histogram(names.METRIC_QUEUE_WAIT, unit="s")
        self._waiting = runs.create_gauge(names.METRIC_RUNS_WAITING)
        self._limits = runs.create_counter(names.METRIC_LIMIT_HIT)
        self._sub_calls = runs.create_counter(names.METRIC_SUBCALLS)

    @contextlib.contextmanager
    def driving(self, *, queued_s: float | None) -> Iterator[None]:
        """Count a run as active here while the block lasts, however that ends; `queued_s` is how
        long it waited for its begin."""
        if queued_s is not None:
            self._queue_wait.record(queued_s)
        self._active.add(1)
        try:
            yield
        finally:
            self._active.add(-1)

    def waiting(self, count: int) -> None:
        """Tell how many runs wait, of all processes."""
        self._waiting.set(count)

    def sub_call(self) -> None:
        """Count a sub-call."""
        self._sub_calls.add(1)

    def ended(self, run: Run, *, duration_s: float) -> None:
        """Count a run that has ended, driven here for so long."""
        labels = {names.STATUS: status_word(run)}
        self._runs.add(1, labels)
        self._duration.record(duration_s, labels)
        if run.answer.limit_reached:
            self._limits.add(1, {names.KIND: run.answer.limit_reached})


def status_word(run: Run) -> str:
    """Return a run's state in one word, such as `answered`."""
    return Run.State.Name(run.state).removeprefix("STATE_").lower()
