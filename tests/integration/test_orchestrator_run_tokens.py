"""Run tokens as the orchestrator hands them out: each for one service, and fresh for as long as
code runs, however short their lives.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fathom.gateway.v1.generation_pb2 import CallContext, Prompt
from fathom.orchestrator.v1.run_pb2 import Run
from fathom.sandbox.v1 import sandbox_service_pb2 as pb

from common.run_token import ORCHESTRATOR, SANDBOX
from tests.support.eventually import eventually
from tests.support.plan_sandbox import PlanSandbox
from tests.support.run_trees import plan_trees
from tests.support.tree_gateway import TreeGateway


class SlowSubModels(TreeGateway):
    """Answers sub-calls when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def _reply(self, prompt: Prompt, call: CallContext) -> str | Exception:
        if not is_of_root_model(call.request_id):
            self.is_asked.set()
            await self.may_answer.wait()
        return await super()._reply(prompt, call)


def is_of_root_model(request_id: str) -> bool:
    return request_id.split("/")[2] == "0"


async def not_heard(*_: object) -> pb.RefreshRunTokenResponse:
    return pb.RefreshRunTokenResponse()


async def test_a_token_is_for_the_service_that_gets_it(tmp_path: Path) -> None:
    """One that leaks from a service is of no use to another."""
    models = TreeGateway()
    plan = {"calls": 2, "children": [{"calls": 1}]}
    async with plan_trees(tmp_path, models) as (stack, _):
        await stack.watch(await stack.create(json.dumps(plan)))

    asked = {(is_of_root_model(key), *paid.token.presenters) for key, paid in models.paid.items()}
    assert asked == {(True, ORCHESTRATOR), (False, SANDBOX)}


@pytest.mark.parametrize(
    ("is_renewed", "lifetimes_s", "outcomes"),
    [
        (True, [3.0, 9.0, 27.0], ["Generation", "Run"]),
        (False, [1.5], ["Generation", "ReceivedError"]),
    ],
    ids=["renewed", "not renewed"],
)
async def test_code_may_run_for_longer_than_its_token_lives(
    tmp_path: Path,
    monkeypatch: Any,
    is_renewed: bool,
    lifetimes_s: list[float],
    outcomes: list[str],
) -> None:
    """A sub-call outlasts the cell's first token; the child run after it needs a good one."""
    if not is_renewed:
        monkeypatch.setattr(PlanSandbox, "RefreshRunToken", not_heard)
    plan = {"calls": 1, "children": [{}]}
    for lifetime_s in lifetimes_s:  # on a slow machine a new token, too, can be used too late
        models, folder = SlowSubModels(), tmp_path / str(lifetime_s)
        folder.mkdir()
        settings = {"run_token_lifetime_s": lifetime_s}
        async with plan_trees(folder, models, **settings) as (stack, sandbox):
            run = await stack.create(json.dumps(plan))
            await models.is_asked.wait()
            began = time.time()
            await eventually(lambda: time.time() > began + lifetime_s)  # noqa: B023
            models.may_answer.set()
            ended = (await stack.watch(run))[-1].run_changed
        if json.loads(ended.answer.text) == outcomes:
            break

    assert ended.state == Run.STATE_ANSWERED
    assert json.loads(ended.answer.text) == outcomes
    assert all(paid.token.expires_at <= time.time() + lifetime_s for paid in models.paid.values())
    assert bool(sandbox.refreshed) is is_renewed
