"""How far a run is, kept up to date from its events.

Folds events into figures; drawing them is the command's part.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fathom.gateway.v1 import generation_pb2
from fathom.orchestrator.v1 import run_event_pb2, run_pb2

from fathom_client.watching import TERMINAL_STATES


@dataclass(kw_only=True)
class RunProgress:
    """Figures of one run, as of the newest event that was applied."""

    state: run_pb2.Run.State.ValueType = run_pb2.Run.STATE_QUEUED
    """State of the run."""
    turns: int = 0
    """Turns begun."""
    turns_max: int = 0
    """Turns permitted; 0 until the run told."""
    sub_calls: int = 0
    """Sub-calls begun."""
    tokens: int = 0
    """Input and output tokens."""
    cost_usd_nanos: int = 0
    """Money spent, in billionths of a US dollar."""
    cost_usd_nanos_max: int | None = None
    """Money permitted; None where nothing limits it, or until the run told."""
    started_at_s: float | None = None
    """Unix time of the start; None while the run waits."""
    ended_at_s: float | None = None
    """Unix time of the end; None until then."""
    sequence: int = 0
    """The newest event's."""
    _live: set[int] = field(default_factory=set)
    _children: set[str] = field(default_factory=set)
    _children_live: set[str] = field(default_factory=set)

    @property
    def sub_calls_live(self) -> int:
        """Sub-calls under way."""
        return len(self._live)

    @property
    def children(self) -> int:
        """Child runs begun."""
        return len(self._children)

    @property
    def children_live(self) -> int:
        """Child runs that have not ended."""
        return len(self._children_live)

    def elapsed_s(self, now_s: float) -> float:
        """Return seconds since the start, up to the end or to the unix time `now_s`."""
        if self.started_at_s is None:
            return 0.0
        return max(0.0, (self.ended_at_s or now_s) - self.started_at_s)

    def apply(self, event: run_event_pb2.RunEvent) -> None:
        """Take one event in; events come in order and each once."""
        self.sequence = event.sequence
        match event.WhichOneof("event"):
            case "run_changed":
                self._take_run(event.run_changed)
            case "turn_started" if not event.turn_started.last_answer:
                self.turns = max(self.turns, event.turn)
            case "model_replied":
                self._take_total(event.model_replied.run_usage)
            case "sub_call_started":
                self.sub_calls = max(self.sub_calls + 1, event.sub_call_started.sub_call)
                self._live.add(event.sub_call_started.sub_call)
            case "sub_call_finished":
                self._live.discard(event.sub_call_finished.sub_call)
                usage = event.sub_call_finished.usage
                self.tokens += usage.input_tokens + usage.output_tokens
                self.cost_usd_nanos += usage.cost_usd_nanos
            case "child_run_changed" if event.child_run_changed.run.name:
                self._take_child(event.child_run_changed)
            case "cell_finished":
                self._live.clear()

    def _take_run(self, run: run_pb2.Run) -> None:
        self.state = run.state
        self.turns = max(self.turns, run.turns)
        self.sub_calls = max(self.sub_calls, run.sub_calls)
        self._take_total(run.usage)
        limits = run.spec.limits
        self.turns_max = limits.turns_max
        if limits.HasField("cost_usd_nanos_max"):
            self.cost_usd_nanos_max = limits.cost_usd_nanos_max
        if run.HasField("start_time"):
            self.started_at_s = run.start_time.ToNanoseconds() / 1e9
        if run.HasField("end_time"):
            self.ended_at_s = run.end_time.ToNanoseconds() / 1e9
            self._live.clear()
            self._children_live.clear()

    def _take_child(self, changed: run_event_pb2.ChildRunChanged) -> None:
        self._children.add(changed.run.name)
        if changed.run.state in TERMINAL_STATES:
            self._children_live.discard(changed.run.name)
            self._take_total(changed.run_usage)
        else:
            self._children_live.add(changed.run.name)

    def _take_total(self, usage: generation_pb2.Usage) -> None:
        # Totals never shrink: one that was written before the last sub-calls ended tells less.
        self.tokens = max(self.tokens, usage.input_tokens + usage.output_tokens)
        self.cost_usd_nanos = max(self.cost_usd_nanos, usage.cost_usd_nanos)
