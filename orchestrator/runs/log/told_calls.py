"""What the log of a run tells of its calls to models: what each took, and whether some may have
taken more than is told, since they were cut off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import grpc
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import RunSpec
from google.rpc.status_pb2 import Status

from common.errors import ReceivedError

_CUT_OFF = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    }
)
"""A call that failed like this may have gone on where nobody waited for it any more."""
_WHOLE_ENDINGS = frozenset({"COMPLETED", "RAISED"})
"""Cells that end like this have waited for all that they asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToldCall:
    """What one call took, or several that were cut off."""

    turn: int
    """Turn of the run."""
    tier: str
    """The tier that was asked."""
    model: str
    """The deployment that answered, `models/{model}`; empty where none did."""
    usage: Usage
    """What it took."""


class ToldCalls:
    """The calls that a run's log tells of. Each event is taken once, in order."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._tiers: dict[int, str] = {}
        """Of the sub-calls that have not ended."""
        self._is_asking = False
        self._has_cut = False

    def take(self, event: RunEvent) -> Iterator[ToldCall]:
        """Yield the calls whose usage an event tells."""
        case = event.WhichOneof("event")
        if case == "usage_settled":
            for each in event.usage_settled.usages:
                yield ToldCall(turn=each.turn, tier=each.tier, model=each.model, usage=each.usage)
            return
        self._note(case or "", event)
        found = self._usage_in(case or "", event)
        if found is not None:
            tier, model, usage = found
            yield ToldCall(turn=event.turn, tier=tier, model=model, usage=usage)

    @property
    def may_have_cut(self) -> bool:
        """Whether calls may have taken more than is told."""
        return self._has_cut or self._is_asking or bool(self._tiers)

    def _note(self, case: str, event: RunEvent) -> None:
        if case == "turn_started":
            self._is_asking = True
        elif case == "model_replied":
            self._is_asking = False
        elif case == "model_call_failed":
            self._is_asking = False
            self._has_cut |= _is_cut_off(event.model_call_failed.error)
        elif case == "sub_call_started":
            self._tiers[event.sub_call_started.sub_call] = event.sub_call_started.tier
        elif case == "sub_call_finished":
            self._has_cut |= _is_cut_off(event.sub_call_finished.error)
        elif case == "cell_finished":
            self._has_cut |= event.cell_finished.ending not in _WHOLE_ENDINGS
        elif case == "value_read":
            self._has_cut |= bool(event.value_read.error or event.value_read.limit_reached)
        elif case == "history_compacted":
            self._has_cut |= event.history_compacted.mechanical

    def _usage_in(self, case: str, event: RunEvent) -> tuple[str, str, Usage] | None:
        """Return tier, model and usage of the call that an event tells of; None for others."""
        spec = self._spec
        if case == "model_replied":
            return spec.root_tier, event.model_replied.model, event.model_replied.usage
        if case == "model_call_failed":
            return spec.root_tier, "", event.model_call_failed.usage
        if case == "sub_call_finished":
            finished = event.sub_call_finished
            tier = self._tiers.pop(finished.sub_call, spec.sub_tier)
            return tier, finished.model, finished.usage
        if case == "history_compacted":
            compacted = event.history_compacted
            return spec.sub_tier, compacted.model, compacted.usage
        return None


def _is_cut_off(error: Status) -> bool:
    return bool(error.code) and ReceivedError(error).code in _CUT_OFF
