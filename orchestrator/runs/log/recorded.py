"""What the log of a run has already: what driving the run again finds done, and what its totals
are made from. Nothing is decided here.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import (
    CheckpointStored,
    ExecutionRecord,
    LimitReached,
    RunEvent,
    SubCallFinished,
)
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from google.rpc.status_pb2 import Status

from orchestrator.runs.amounts import add_usage
from orchestrator.runs.log.record import TERMINAL_STATES
from orchestrator.runs.log.told_calls import ToldCalls

Key = tuple[str, int, int, object]
"""What an event is about: kind, turn, cell, and what tells apart those of one cell."""
Place = tuple[int, int]
"""Turn and cell."""
_MODEL_CALL = "model_call"
_KINDS = {"model_replied": _MODEL_CALL, "model_call_failed": _MODEL_CALL}
"""Events that are outcomes of the same step."""
_COUNTED_ONLY = frozenset(
    {
        *("sub_call_started", "sub_call_finished"),
        *("run_changed", "host_tool_called", "usage_settled"),
    }
)
"""Many or large, and never read again."""
_FAILURES_MAX = 10_000


def key_of(event: RunEvent) -> Key:
    """Return what an event is about."""
    case = event.WhichOneof("event") or ""
    part: object = 0
    if case in {"sub_call_started", "sub_call_finished"}:
        part = getattr(event, case).sub_call
    elif case == "notice":
        part = event.notice.kind
    elif case == "run_changed":
        part = event.run_changed.state
    elif case == "host_tool_called":
        part = event.host_tool_called.call
    elif case == "child_run_changed":
        part = (event.child_run_changed.child, tells_child_end(event))
    return _KINDS.get(case, case), event.turn, event.cell, part


def tells_child_end(event: RunEvent) -> bool:
    """True for the event of a child run's end."""
    return event.child_run_changed.run.state in TERMINAL_STATES


def model_call(turn: int) -> Key:
    """Return the key of what a call of the root model came to."""
    return _MODEL_CALL, turn, 0, 0


def turn_started(turn: int) -> Key:
    """Return the key of the root model being asked."""
    return "turn_started", turn, 0, 0


def history_compacted(turn: int) -> Key:
    """Return the key of the conversation being compacted."""
    return "history_compacted", turn, 0, 0


def cell_end(turn: int, cell: int) -> Key:
    """Return the key of a cell's end."""
    return "cell_finished", turn, cell, 0


def value_read(turn: int, cell: int) -> Key:
    """Return the key of a variable that was read."""
    return "value_read", turn, cell, 0


def noticed(kind: str, turn: int) -> Key:
    """Return the key of a notice about a whole turn."""
    return "notice", turn, 0, kind


def execution_in(event: RunEvent) -> ExecutionRecord | None:
    """Return what running an event's code again takes; None for other events."""
    if event.HasField("cell_finished"):
        return event.cell_finished.record
    return event.value_read.record if event.HasField("value_read") else None


@dataclasses.dataclass
class RecordedSubCalls:
    """The sub-calls of one cell that the log has."""

    usage: Usage = dataclasses.field(default_factory=Usage)
    """What they took."""
    newest: int = 0
    """Number of the newest one that was started."""
    failures: dict[int, Status] = dataclasses.field(default_factory=dict)
    """Those that failed, by number."""


class RecordedEvents:
    """The events of one run. Each is taken once, in order."""

    def __init__(self, spec: RunSpec | None = None) -> None:
        """`spec` is the run's, for the names of its tiers."""
        self._counts: collections.Counter[Key] = collections.Counter()
        self._kept: dict[Key, list[RunEvent]] = {}
        self._sub_calls: dict[Place, RecordedSubCalls] = {}
        self._children: dict[Place, list[Run]] = {}
        self._limits: dict[int, LimitReached] = {}
        self._newest_turn = 0
        self._checkpoints: dict[int, CheckpointStored] = {}
        self._calls = ToldCalls(spec or RunSpec())
        self._told: dict[int, dict[tuple[str, str], Usage]] = {}
        self._usage = Usage()

    def take(self, event: RunEvent) -> None:
        """Add an event."""
        key, place = key_of(event), (event.turn, event.cell)
        case = event.WhichOneof("event")
        self._counts[key] += 1
        self._newest_turn = max(self._newest_turn, event.turn)
        for call in self._calls.take(event):
            told = self._told.setdefault(call.turn, {})
            add_usage(told.setdefault((call.tier, call.model), Usage()), call.usage)
            add_usage(self._usage, call.usage)
        if case not in _COUNTED_ONLY:
            self._kept.setdefault(key, []).append(event)
        if case == "sub_call_started":
            calls = self._sub_calls.setdefault(place, RecordedSubCalls())
            calls.newest = max(calls.newest, event.sub_call_started.sub_call)
        elif case == "sub_call_finished":
            calls = self._sub_calls.setdefault(place, RecordedSubCalls())
            _note(calls, event.sub_call_finished)
        elif case == "child_run_changed" and tells_child_end(event):
            self._children.setdefault(place, []).append(event.child_run_changed.run)
            add_usage(self._usage, event.child_run_changed.run.usage)
        elif case == "limit_reached":
            self._limits[event.turn] = event.limit_reached
        elif case == "checkpoint_stored":
            self._checkpoints[event.turn] = event.checkpoint_stored

    @property
    def usage(self) -> Usage:
        """What all calls took that are told of, those of ended child runs included."""
        return self._usage

    @property
    def may_have_cut(self) -> bool:
        """Whether calls of the run may have taken more than is told."""
        return self._calls.may_have_cut

    def told_in(self, turn: int) -> Mapping[tuple[str, str], Usage]:
        """Return what the run's own calls of a turn took, by tier and model; the model is empty
        for those that failed."""
        return self._told.get(turn, {})

    def count(self, key: Key) -> int:
        """Return how many events there are of a key."""
        return self._counts[key]

    def find(self, key: Key, ordinal: int) -> RunEvent | None:
        """Return an event of a key, from 0; None where there is none."""
        kept = self._kept.get(key, ())
        return kept[ordinal] if ordinal < len(kept) else None

    def sub_calls(self, place: Place) -> RecordedSubCalls:
        """Return the sub-calls of a cell."""
        return self._sub_calls.get(place) or RecordedSubCalls()

    def ended_children(self, place: Place) -> Sequence[Run]:
        """Return the child runs of a cell whose end is told."""
        return self._children.get(place, ())

    def limit_at(self, turn: int) -> LimitReached | None:
        """Return the limit that ended the work in or right after a turn."""
        return self._limits.get(turn)

    def checkpoint_at(self, turn: int) -> CheckpointStored | None:
        """Return the checkpoint of a turn's end."""
        return self._checkpoints.get(turn)

    def first_execution(self) -> ExecutionRecord | None:
        """Return how code was executed first; None where nothing was."""
        for events in self._kept.values():
            record = execution_in(events[0])
            if record is not None and record.session:
                return record
        return None

    @property
    def newest_turn(self) -> int:
        """The newest turn of which there is an event; 0 for none."""
        return self._newest_turn


def _note(calls: RecordedSubCalls, finished: SubCallFinished) -> None:
    add_usage(calls.usage, finished.usage)
    if finished.HasField("error") and len(calls.failures) < _FAILURES_MAX:
        calls.failures[finished.sub_call] = finished.error
