"""A sandbox whose cells are plans instead of Python: so many sub-calls, then these children, each
with a plan of its own. What carries them is the sandbox service's own, without guests.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fathom.sandbox.v1 import execution_pb2 as ex
from fathom.sandbox.v1 import sandbox_service_pb2 as pb

from common.channel import open_channel
from sandbox_service import frames, responses
from sandbox_service.child_runs import ChildRunRound
from sandbox_service.execution_stream import Event
from sandbox_service.gateway_client import GatewaySubModels
from sandbox_service.orchestrator_client import OrchestratorClient
from sandbox_service.run_pass import RunPass
from sandbox_service.sub_calls import SubCallMeter, SubCallRound
from tests.support.fake_sandbox import Context, FakeSandbox

Plan = dict[str, Any]
"""`calls`: sub-calls, all of the text `prompt`; `children`: their plans; `asked`: limits asked for
each of them. Of a child: `schema` of its answer, `tier` of its root model. A plan that `raises`
does so when all of that is done."""
_LIMITS = (
    *("turns_max", "time_max_s", "sub_calls_max", "tokens_max"),
    *("cost_usd_nanos_max", "depth_max", "children_live_max"),
)


class PlanSandbox(FakeSandbox):
    """Executes plans."""

    def __init__(self, gateway_address: str, orchestrator_address_file: Path) -> None:
        super().__init__()
        self._gateway_channel = open_channel(gateway_address)
        self._models = GatewaySubModels(
            self._gateway_channel, call_timeout_s=30.0, concurrency_max=16
        )
        self._children = OrchestratorClient("", orchestrator_address_file)
        self.ran: list[str] = []
        """Call prefix of each plan that was executed."""
        self._passes: dict[str, RunPass] = {}

    async def close(self) -> None:
        """Close what leads to the neighbours."""
        await self._children.__aexit__(None, None, None)
        await self._gateway_channel.close()

    async def Execute(
        self, request: pb.ExecuteRequest, context: Context
    ) -> AsyncIterator[pb.ExecuteResponse]:
        """Do what the plan says, and give as final what came of it."""
        self.ran.append(request.call_prefix)
        session = self._find(request.name)
        session.executions += 1
        session.is_busy = True
        yield _told(session.executions)
        try:
            plan: Plan = json.loads(request.code)
            made: list[str] = []
            result = ex.ExecutionResult(ending=ex.ExecutionResult.ENDING_COMPLETED, state_kept=True)
            for part in self._rounds(plan, request):
                async for event in part.events():
                    yield _told(event)
                made += [type(outcome).__name__ for outcome in part.outcomes]
                if part.limit_reached is not None:
                    result.limit_reached.CopyFrom(part.limit_reached.to_status())
                    break
            else:
                if plan.get("raises"):
                    result.ending = ex.ExecutionResult.ENDING_RAISED
                    result.error.type = result.error.message = "PlannedError"
                else:
                    result.final.text = json.dumps(made)
                    result.final.is_json = True
            yield pb.ExecuteResponse(event=ex.ExecutionEvent(result=result))
        finally:
            session.is_busy = False

    async def RefreshRunToken(
        self, request: pb.RefreshRunTokenRequest, context: Context
    ) -> pb.RefreshRunTokenResponse:
        """Replace a session's run token."""
        self.refreshed.append(request.run_token)
        self._passes[request.name].token = request.run_token
        return pb.RefreshRunTokenResponse()

    def _rounds(self, plan: Plan, request: pb.ExecuteRequest) -> list[Any]:
        meter = SubCallMeter(request.sub_calls_max)
        run_pass = self._passes[request.name] = RunPass(request.run_token)
        rounds: list[Any] = []
        if plan.get("calls"):
            prompt = [frames.Message(role="user", text=plan.get("prompt", "read"))]
            question = frames.Question(
                prompts=[prompt] * plan["calls"],
                is_batch=True,
                tier="",
                output_tokens_max=None,
                temperature=None,
            )
            rounds.append(
                SubCallRound(
                    question=question,
                    meter=meter,
                    sub_models=self._models,
                    run_pass=run_pass,
                    default_tier="sub",
                    call_prefix=request.call_prefix,
                    turn=request.turn,
                    sequence=0,
                )
            )
        if plan.get("children"):
            runs = [_child(child, plan.get("asked", {})) for child in plan["children"]]
            rounds.append(
                ChildRunRound(
                    question=frames.ChildQuestion(runs=runs, is_batch=True),
                    meter=meter,
                    child_runs=self._children,
                    run_pass=run_pass,
                    call_prefix=request.call_prefix,
                    sequence=0,
                )
            )
        return rounds


def _told(event: int | Event) -> pb.ExecuteResponse:
    return responses.events([event], joined=False)[0]


def _child(plan: Plan, asked: dict[str, Any]) -> frames.ChildRun:
    limits = {name: asked.get(name) for name in _LIMITS}
    return frames.ChildRun(
        question=json.dumps(plan),
        context=None,
        tier=plan.get("tier", ""),
        sub_tier="",
        schema=plan.get("schema", ""),
        **limits,
    )
