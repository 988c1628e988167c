"""Trees of runs through the real orchestrator and the real sandbox: a model's code starts child
runs, which have sessions and events of their own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.orchestrator_service_pb2_grpc import OrchestratorServiceStub
from fathom.orchestrator.v1.run_pb2 import Run
from google.protobuf.duration_pb2 import Duration

from common.channel import open_channel
from common.config import Secret
from common.errors import ReceivedError, received
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import TIMEOUT_S, Stack
from tests.support.run_trees import trees
from tests.support.tree_gateway import COST_NANOS, Reply, TreeGateway

pytestmark = pytest.mark.guest
USD = 1_000_000_000


def cell(code: str) -> str:
    """Return a reply with one cell."""
    return f"I will run this.\n\n```repl\n{code}\n```\n"


async def ask(stack: Stack, question: str, data: bytes = b"some text\n", **limits: Any) -> Run:
    """Run a question to its end; return the run as it is shown."""
    context = await stack.upload(data)
    run = await stack.create(question, context=context, **limits)
    await stack.watch(run)
    return await get(stack, run.name)


async def get(stack: Stack, name: str) -> Run:
    """Return a run as it is shown."""
    return (await stack.runs.GetRun(pb.GetRunRequest(name=name), timeout=TIMEOUT_S)).run


async def children(stack: Stack, parent: str) -> list[Run]:
    """Return the children of a run, oldest first."""
    request = pb.ListRunsRequest(parent=parent)
    return list(reversed((await stack.runs.ListRuns(request, timeout=TIMEOUT_S)).runs))


async def usage(stack: Stack, name: str, group_by: int = 0) -> dict[str, int]:
    """Return the cost of each group."""
    request = pb.GetRunUsageRequest(name=name, group_by=group_by)  # type: ignore[arg-type]
    response = await stack.runs.GetRunUsage(request, timeout=TIMEOUT_S)
    assert sum(g.usage.cost_usd_nanos for g in response.groups) == response.total.cost_usd_nanos
    return {group.key: group.usage.cost_usd_nanos for group in response.groups}


def gateway(**scripts: Sequence[Reply]) -> TreeGateway:
    """Return one with scripts by question."""
    return TreeGateway(scripts)


async def test_a_tree_of_depth_two_with_a_batch_answers(tmp_path: Path) -> None:
    """Each run has its own session, context, events and spend; all of it is the root's too."""
    models = gateway(
        top=[cell("parts = rlm_query_batched('middle', [context[:4], part(5, 9)])\nFINAL(parts)")],
        middle=[cell("FINAL(rlm_query('leaf') + '!')")],
        leaf=[cell("FINAL(llm_query(context))")],
    )
    async with trees(tmp_path, models) as (stack, _):
        root = await ask(stack, "top", b"some text\n", depth_max=2, children_live_max=8)

        assert root.answer.text == '["re: some!", "re: text!"]'
        middles = await children(stack, root.name)
        leaves = [leaf for middle in middles for leaf in await children(stack, middle.name)]
        assert [run.depth for run in (root, *middles, *leaves)] == [0, 1, 1, 2, 2]
        assert {run.root for run in (root, *middles, *leaves)} == {root.name}
        assert root.usage.cost_usd_nanos == len(models.paid) * COST_NANOS == 7 * COST_NANOS
        assert (root.sub_calls, root.children, root.children_live) == (2, 2, 0)
        assert await usage(stack, root.name, pb.GetRunUsageRequest.GROUP_BY_DEPTH) == {
            "0": COST_NANOS,
            "1": 2 * COST_NANOS,
            "2": 4 * COST_NANOS,
        }
        assert await usage(stack, root.name, pb.GetRunUsageRequest.GROUP_BY_TIER) == {
            "root": 5 * COST_NANOS,
            "sub": 2 * COST_NANOS,
        }
        assert await usage(stack, root.name, pb.GetRunUsageRequest.GROUP_BY_TURN) == {
            "1": 7 * COST_NANOS
        }


async def test_the_parents_log_tells_of_its_children(tmp_path: Path) -> None:
    models = gateway(top=[cell("FINAL(rlm_query('low'))")], low=["FINAL(yes)"])
    async with trees(tmp_path, models) as (stack, _):
        run = await stack.create("top")
        events = await stack.watch(run)

        told = [e for e in events if e.HasField("child_run_changed")]
        states = [e.child_run_changed.run.state for e in told]
        assert states == [Run.STATE_QUEUED, Run.STATE_ANSWERED] or states == [
            Run.STATE_RUNNING,
            Run.STATE_ANSWERED,
        ]
        assert [(e.turn, e.cell, e.child_run_changed.child) for e in told] == [(1, 1, 1)] * 2
        assert told[1].child_run_changed.run_usage.cost_usd_nanos == 2 * COST_NANOS
        (child,) = await children(stack, run.name)
        assert told[1].child_run_changed.run.name == child.name
        assert (await stack.watch(child))[0].sequence == 1


async def test_roots_alone_are_listed_unless_children_are_asked_for(tmp_path: Path) -> None:
    models = gateway(top=[cell("FINAL(rlm_query('low'))")], low=["FINAL(yes)"])
    async with trees(tmp_path, models) as (stack, _):
        run = await ask(stack, "top")

        listed = await stack.runs.ListRuns(pb.ListRunsRequest(), timeout=TIMEOUT_S)
        assert [each.name for each in listed.runs] == [run.name]
        assert [child.parent for child in await children(stack, run.name)] == [run.name]


async def test_a_child_that_fails_is_a_value_to_its_parent(tmp_path: Path) -> None:
    models = gateway(
        top=[
            cell(
                "a = rlm_query_batched(['low', 'broken'])\n"
                "FINAL([str(x) if x else x.reason for x in a])"
            )
        ],
        low=["FINAL(fine)"],
        broken=[RefusedError("no")],
    )
    async with trees(tmp_path, models) as (stack, _):
        run = await ask(stack, "top")

        assert run.answer.text == '["fine", "CHILD_RUN_FAILED"]'
        states = {child.state for child in await children(stack, run.name)}
        assert states == {Run.STATE_ANSWERED, Run.STATE_FAILED}


async def test_code_cannot_go_deeper_than_the_run_may(tmp_path: Path) -> None:
    """What the guest asks for is lowered to what is left of the parent's own depth."""
    deep = (
        "try:\n    r = rlm_query('down', max_depth=9)\nexcept ChildRunError as e:\n    r = e.reason"
    )
    models = gateway(down=[cell(f"{deep}\nFINAL(str(r) + '.')")])
    async with trees(tmp_path, models) as (stack, _):
        run = await ask(stack, "down", depth_max=2)

        assert run.answer.text == "CHILD_RUN_REFUSED..."
        (child,) = await children(stack, run.name)
        (grandchild,) = await children(stack, child.name)
        assert not await children(stack, grandchild.name)


async def test_no_more_children_live_than_may(tmp_path: Path) -> None:
    """Those beyond wait for one to end; none is refused."""
    seen = asyncio.Event()

    async def once_seen(_: str) -> str:
        await seen.wait()
        return "FINAL(x)"

    models = gateway(top=[cell("FINAL(rlm_query_batched(['low'] * 5))")], low=[once_seen])
    most = 0
    async with trees(tmp_path, models) as (stack, _):
        run = await stack.create("top", children_live_max=2)
        watching = asyncio.create_task(stack.watch(run))
        while not watching.done():
            most = max(most, (await get(stack, run.name)).children_live)
            if most >= 2:
                seen.set()
            await asyncio.wait({watching}, timeout=0.01)

        assert (await get(stack, run.name)).answer.text == '["x", "x", "x", "x", "x"]'
        assert most == 2


async def test_cancelling_a_run_cancels_all_below_it(tmp_path: Path) -> None:
    models = gateway(
        top=[cell("rlm_query_batched(['middle', 'middle'])")],
        middle=[cell("rlm_query('low')")],
        low=[cell("while True: pass")],
    )
    async with trees(tmp_path, models) as (stack, sandbox):
        run = await stack.create("top", depth_max=2)
        await eventually(lambda: len(models.requests) >= 5)

        # No run here ever ends by itself.
        await stack.runs.CancelRun(pb.CancelRunRequest(name=run.name), timeout=TIMEOUT_S)
        await stack.watch(run)

        assert (await get(stack, run.name)).state == Run.STATE_CANCELLED

        async def are_all_cancelled() -> bool:  # a run waits only so long for those below it
            middles = await children(stack, run.name)
            lows = [low for middle in middles for low in await children(stack, middle.name)]
            assert len(middles) == len(lows) == 2
            return {each.state for each in (*middles, *lows)} == {Run.STATE_CANCELLED}

        await eventually(are_all_cancelled)
        await eventually(lambda: len(sandbox.table) == 0)


async def test_a_parent_that_ends_leaves_no_child_alive(tmp_path: Path) -> None:
    """A cell that is out of time goes down with its children, whatever they are doing."""

    async def never(_: str) -> str:
        await asyncio.Event().wait()
        return ""

    models = gateway(top=[cell("rlm_query('low')"), "FINAL(enough)"], low=[never])
    async with trees(tmp_path, models) as (stack, sandbox):
        context = await stack.upload()
        for time_s in (3, 8, 20):  # on a slow machine no child begins within the first
            run = await stack.create("top", context=context, time_max=Duration(seconds=time_s))
            await stack.watch(run)
            if begun := await children(stack, run.name):
                break
        (child,) = begun

        async def has_ended() -> bool:
            return (await get(stack, child.name)).HasField("end_time")

        await eventually(has_ended)
        await eventually(lambda: len(sandbox.table) == 0)


async def test_parts_of_a_context_are_used_where_they_are(tmp_path: Path) -> None:
    """A child of a part costs no copy; characters are counted as the parent's code counts them."""
    data = "äöü one\nßßß two\n".encode() * 50_000
    models = gateway(
        top=[cell("FINAL(rlm_query('low', part(8, 16)) + '|' + context[8:16])")],
        low=[cell("FINAL(context)")],
    )
    async with trees(tmp_path, models) as (stack, _):
        run = await ask(stack, "top", data)

        assert run.answer.text == "ßßß two\n|ßßß two\n"
        blobs = [path for path in (tmp_path / "objects" / "blobs").rglob("*") if path.is_file()]
        assert len(blobs) == 1


async def test_money_of_a_child_is_its_part(tmp_path: Path) -> None:
    """A child cannot spend what is kept for its siblings and its parent."""
    loop = cell("for i in range(99):\n    llm_query(f'{context}{i}')")
    models = gateway(
        top=[cell("a = rlm_query_batched('greedy', ['x', 'y'])\nFINAL(str(len(a)))")],
        greedy=[loop],
    )
    async with trees(tmp_path, models) as (stack, _):
        run = await ask(stack, "top", cost_usd_nanos_max=60 * COST_NANOS)

        assert run.state == Run.STATE_ANSWERED
        spent = [child.usage.cost_usd_nanos for child in await children(stack, run.name)]
        limits = [child.spec.limits.cost_usd_nanos_max for child in await children(stack, run.name)]
        assert all(0 < cost <= limit for cost, limit in zip(spent, limits, strict=True))
        assert sum(limits) < 60 * COST_NANOS
        assert run.usage.cost_usd_nanos == len(models.paid) * COST_NANOS <= 60 * COST_NANOS


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({}, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
        ({"tenant": "another"}, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"),
        ({"tiers": ("sub",)}, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    ],
)
async def test_only_a_token_of_the_run_starts_its_children(
    tmp_path: Path, change: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    models = gateway(top=[cell("rlm_query('low')")], low=["FINAL(never)"])
    async with trees(tmp_path, models) as (stack, _):
        run = await running(stack, models)
        token = token_of(run, **change) if change else "v1.nonsense.nonsense"

        error = await refused(stack, run, token)
        assert (error.code, error.reason_name) == (code, f"ERROR_REASON_{reason}")


async def test_what_no_child_can_be_is_refused_by_name(tmp_path: Path) -> None:
    """The request comes from a sandbox that runs hostile code."""
    impossible: list[tuple[dict[str, Any], str]] = [
        ({"context": {"text": {"slice": {"start": 5, "end": 500}}}}, "context.slice"),
        ({"context": {"text": {"slice": {"start": 7, "end": 7}}}}, "context.slice"),
        ({"context": {"text": {"slice": {"start": -1}}}}, "context.slice"),
        ({"context": {"text": {"slice": {"document": "x"}}}}, "context.slice.document"),
        ({"context": {"text": {"text": "x" * ((8 << 20) + 1)}}}, "context"),
        ({"context": {"text": {}}}, "context.text"),
        ({"context": {"json": "{"}}, "chunk.data"),
        ({"context": {"documents": {}}}, "context.documents"),
        ({"request_id": "another/1/1/c1"}, "request_id"),
        ({"request_id": "{run}/"}, "request_id"),
        ({"request_id": "{run}/1/1/c1/2"}, "request_id"),
        ({"request_id": "{run}/1/1/c-1"}, "request_id"),
        ({"request_id": "{run}/1/1/c1\0"}, "request_id"),
        ({"question": " "}, "question"),
        ({"siblings": -1}, "siblings"),
        ({"limits": {"tokens_max": 0}}, "limits.tokens_max"),
    ]
    models = gateway(top=[cell("rlm_query('low')")], low=["FINAL(never)"])
    async with trees(tmp_path, models) as (stack, _):
        run = await running(stack, models)
        for fields, field in impossible:
            error = await refused(stack, run, token_of(run), **fields)

            assert error.code is grpc.StatusCode.INVALID_ARGUMENT, fields
            assert error.metadata["field"] == field
        assert len(await children(stack, run.name)) == 1


async def test_a_repeat_finds_the_child_that_is_there(tmp_path: Path) -> None:
    """Code that runs again, after its session was lost, pays nothing twice."""
    models = gateway(top=[cell("FINAL(rlm_query('low'))")], low=["FINAL(yes)"])
    async with trees(tmp_path, models) as (stack, _):
        run = await ask(stack, "top")
        paid = len(models.paid)
        run_id = run.name.removeprefix("runs/")

        request = pb.RunChildRequest(request_id=f"{run_id}/1/1/c1", question="low")
        told = [r.run async for r in call(stack.channel, request, token_of(run))]

        assert [each.answer.text for each in told] == ["yes"]
        assert len(models.paid) == paid


async def test_a_lost_session_comes_back_with_its_childrens_answers(tmp_path: Path) -> None:
    """Its cells run again and find the children that are there: no second child, no second call."""
    models = gateway(
        top=[cell("found = rlm_query('low', part(0, 4)) + llm_query('a')")],
        low=[cell("FINAL(llm_query(context))")],
    )
    async with trees(tmp_path, models) as (stack, sandbox):

        async def lose_it(_: str) -> str:
            for session in sandbox.table.page(0, 10):
                await sandbox.table.delete(session.name)
            return cell("FINAL(found + llm_query('b'))")

        models.scripts["top"] = [*models.scripts["top"], lose_it]
        run = await ask(stack, "top")

        assert run.answer.text == "re: somere: are: b"
        assert (run.sub_calls, run.children) == (3, 1)
        assert run.usage.cost_usd_nanos == len(models.paid) * COST_NANOS
        assert models.asked_again == 1


class RefusedError(Exception):
    """Stands for a provider that refuses."""


async def running(stack: Stack, models: TreeGateway) -> Run:
    """Return a run whose child is being asked."""
    run = await stack.create("top")
    await eventually(lambda: len(models.requests) >= 1)
    models.hold.clear()
    await eventually(lambda: len(models.requests) >= 2)
    return run


def token_of(run: Run, **fields: Any) -> str:
    """Return a token as the run's cells have it."""
    values: dict[str, Any] = {
        "tenant": "default",
        "run": run.name,
        "depth": 0,
        "tiers": ("sub", "root"),
        "tokens_max": 1_000_000,
        "cost_usd_nanos_max": USD,
        "tokens_spent": 0,
        "cost_usd_nanos_spent": 0,
        "expires_at": time.time() + 43_200,
    }
    return RunTokenSigner(Secret(TOKEN_KEY)).mint(RunToken(**values | fields))


def call(channel: grpc.aio.Channel, request: pb.RunChildRequest, token: str) -> Any:
    """Call RunChild as a sandbox does."""
    stub = OrchestratorServiceStub(channel)
    return stub.RunChild(request, timeout=TIMEOUT_S, metadata=((RUN_TOKEN_METADATA, token),))


async def refused(stack: Stack, run: Run, token: str, **fields: Any) -> ReceivedError:
    """Return how a call of RunChild is refused."""
    run_id = run.name.removeprefix("runs/")
    values = {"request_id": "{run}/9/9/c9", "question": "low"} | fields
    values["request_id"] = values["request_id"].replace("{run}", run_id)
    request = pb.RunChildRequest(**values)
    async with open_channel(stack.server.address, message_bytes_max=16 << 20) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call(channel, request, token):
                pass
    return received(caught.value)


async def test_a_child_run_is_forked_into_a_run_of_its_own(tmp_path: Path) -> None:
    """Over the part of the context that it had; what its code was told, by models and children, it
    is told again, and nothing is paid twice."""
    models = gateway(
        top=[cell("FINAL(rlm_query('middle', context[:4]))")],
        middle=[
            cell("a = llm_query('x')\nb = rlm_query('leaf')\nprint(context, a, b)"),
            cell("FINAL(a + b)"),
        ],
        leaf=[cell("FINAL('L')")],
        other=[cell("unused"), cell("FINAL([context, a, b])")],
    )
    async with trees(tmp_path, models) as (stack, _):
        root = await ask(stack, "top", b"some text\n", depth_max=2, children_live_max=8)
        [child] = await children(stack, root.name)
        spent = await usage(stack, root.name)
        request = pb.ForkRunRequest(name=child.name, after_turn=1)
        request.changes.question = "other"
        made = (await stack.runs.ForkRun(request, timeout=TIMEOUT_S)).run
        await stack.watch(made)
        forked = await get(stack, made.name)
        again = await usage(stack, root.name)

    assert json.loads(forked.answer.text)[0] == "some"
    assert child.answer.text == "".join(json.loads(forked.answer.text)[1:])
    assert (forked.parent, forked.root, forked.depth) == ("", forked.name, 0)
    assert forked.usage.calls == 1
    assert again == spent
