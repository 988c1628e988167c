"""What a running cell asks the outside for: numbered within its execution, and handed to whoever
carries it. How a call is made is the part of each round."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ServiceError
from sandbox_service import frames
from sandbox_service.child_runs import ChildRunEvent, ChildRunRound, ChildRuns
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.host_tools import HostToolCalled, HostToolRound, HostTools
from sandbox_service.run_pass import RunPass
from sandbox_service.sub_calls import SubCallEvent, SubCallMeter, SubCallRound, SubModels

CellEvent = SubCallEvent | ChildRunEvent | HostToolCalled


@dataclass(frozen=True, kw_only=True)
class Carriers:
    """The ways out of a session, which end in other services."""

    sub_models: SubModels
    """To the gateway."""
    child_runs: ChildRuns | None = None
    """To the orchestrator; without it code can start none."""
    host_tools: HostTools | None = None
    """To the orchestrator; without it code can call none."""


class CellRequests:
    """The requests of one execution."""

    def __init__(
        self,
        options: ExecutionOptions,
        carriers: Carriers,
        meter: SubCallMeter,
        run_pass: RunPass,
        sub_tier: str,
    ) -> None:
        """`meter` and `run_pass` are the session's; `sub_tier` is what it asks where neither code
        nor options name a tier."""
        self._options = options
        self._carriers = carriers
        self._meter = meter
        self._run_pass = run_pass
        self._sub_tier = options.sub_tier or sub_tier
        self._sub_calls = 0
        self._child_runs = 0
        self._tool_calls = 0
        self._sub_calls_before: int | None = None

    @property
    def sub_calls(self) -> int:
        """Sub-calls that the cell has asked for so far."""
        return self._sub_calls

    def round_of(self, request: frames.Asked) -> SubCallRound | ChildRunRound | HostToolRound:
        """Return what carries the next request of the cell."""
        if isinstance(request, frames.HostTools):
            return self._tool_round(request.question)
        if isinstance(request, frames.ChildRuns):
            return self._child_round(request.question)
        return self._sub_call_round(request.question)

    def _sub_call_round(self, question: frames.Question) -> SubCallRound:
        sequence = self._sub_calls
        self._sub_calls += len(question.prompts)
        return SubCallRound(
            question=question,
            meter=self._meter,
            sub_models=self._carriers.sub_models,
            run_pass=self._run_pass,
            default_tier=self._sub_tier,
            call_prefix=self._options.call_prefix,
            turn=self._options.turn,
            sequence=sequence,
            failures=self._known_failures(),
        )

    def _known_failures(self) -> dict[int, ServiceError]:
        """Return the sub-calls that are known to fail, by their number in the session."""
        if self._sub_calls_before is None:
            self._sub_calls_before = self._meter.made
        failures = self._options.failed_sub_calls
        return {self._sub_calls_before + position: error for position, error in failures.items()}

    def _child_round(self, question: frames.ChildQuestion) -> ChildRunRound:
        sequence = self._child_runs
        self._child_runs += len(question.runs)
        return ChildRunRound(
            question=question,
            meter=self._meter,
            child_runs=self._carriers.child_runs,
            run_pass=self._run_pass,
            call_prefix=self._options.call_prefix,
            sequence=sequence,
        )

    def _tool_round(self, question: frames.HostToolQuestion) -> HostToolRound:
        sequence = self._tool_calls
        self._tool_calls += len(question.calls)
        return HostToolRound(
            question=question,
            host_tools=self._carriers.host_tools,
            run_token=self._run_pass.token,
            call_prefix=self._options.call_prefix,
            sequence=sequence,
        )
