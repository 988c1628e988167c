"""Forks with other models, over the real gateway, whose ledger knows each call by what it asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom_demo.scripted_model.scripts import Script

from tests.support.orchestrator import TIMEOUT_S
from tests.support.run_trees import trees
from tests.support.scripted_gateway import scripted_gateway

pytestmark = pytest.mark.guest


def cell(code: str) -> str:
    return f"I look.\n```repl\n{code}\n```"


async def test_a_fork_with_other_models_is_told_what_the_first_ones_said(tmp_path: Path) -> None:
    """Its cells run again, and ask whom they asked; what is new, the other models are asked."""
    first = Script(
        [
            cell("x = llm_query('a')\ny = llm_query('a', tier='root')"),
            "said by the first sub-model",
            "said by the first root model",
            cell("print(x)\nFINAL(x)"),
        ]
    )
    second = Script([cell("FINAL([x, y, llm_query('b')])"), "said by the other"])
    async with scripted_gateway(tmp_path, first, second) as gateway:
        served: Any = gateway
        async with trees(tmp_path, served, checkpoint_after_s=1e6) as (stack, _):
            made = await stack.create()
            run = (await stack.watch(made))[-1].run_changed
            changes = RunSpec(root_tier="models/m1", sub_tier="models/m1")
            request = pb.ForkRunRequest(name=run.name, after_turn=1, changes=changes)
            forked = (await stack.runs.ForkRun(request, timeout=TIMEOUT_S)).run
            events = await stack.watch(forked)

    ended = events[-1].run_changed
    assert run.answer.text == "said by the first sub-model"
    assert ended.state == Run.STATE_ANSWERED
    assert json.loads(ended.answer.text) == [
        "said by the first sub-model",
        "said by the first root model",
        "said by the other",
    ]
    assert ended.usage.calls == 2
    assert not [event.notice for event in events if event.HasField("notice")]
