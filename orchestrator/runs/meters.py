"""The metrics of runs. None is labelled by run."""

from __future__ import annotations

import time

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
        self._limits = runs.create_counter(names.METRIC_LIMIT_HIT)
        self._sub_calls = runs.create_counter(names.METRIC_SUBCALLS)

    def begin(self, *, queued_s: float) -> float:
        """Count a run that begins; return what `end` wants back."""
        self._queue_wait.record(queued_s)
        self._active.add(1)
        return time.monotonic()

    def sub_call(self) -> None:
        """Count a sub-call."""
        self._sub_calls.add(1)

    def end(self, run: Run, started_s: float) -> None:
        """Count a run that has ended."""
        labels = {names.STATUS: status_word(run)}
        self._active.add(-1)
        self._runs.add(1, labels)
        self._duration.record(time.monotonic() - started_s, labels)
        if run.answer.limit_reached:
            self._limits.add(1, {names.KIND: run.answer.limit_reached})


def status_word(run: Run) -> str:
    """Return a run's state in one word, such as `answered`."""
    return Run.State.Name(run.state).removeprefix("STATE_").lower()
