"""What holds for every tree of runs, whatever its code does."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import Run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from common.config import Secret
from orchestrator.runs.log.record import TERMINAL_STATES
from tests.support.eventually import eventually
from tests.support.orchestrator import TIMEOUT_S, Stack
from tests.support.plan_sandbox import Plan
from tests.support.run_trees import plan_trees
from tests.support.tree_gateway import COST_NANOS, TreeGateway

FEW = settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    phases=[Phase.generate],  # each example is a service of its own: shrinking takes minutes
)


def plans(depth: int) -> st.SearchStrategy[Plan]:
    """Return plans of trees that are at most so deep."""
    children = st.lists(plans(depth - 1), max_size=3) if depth else st.just([])
    asked = st.fixed_dictionaries(
        {},
        optional={
            "cost_usd_nanos_max": st.integers(0, 30).map(lambda n: n * COST_NANOS),
            "sub_calls_max": st.integers(0, 6),
            "depth_max": st.integers(0, 3),
            "children_live_max": st.integers(0, 4),
        },
    )
    return st.fixed_dictionaries({"calls": st.integers(0, 3), "children": children, "asked": asked})


ROOT_LIMITS = st.fixed_dictionaries(
    {
        "cost_usd_nanos_max": st.integers(4, 60).map(lambda n: n * COST_NANOS),
        "sub_calls_max": st.integers(0, 30),
        "depth_max": st.integers(0, 3),
        "children_live_max": st.integers(1, 6),
        "turns_max": st.just(2),
    }
)


async def tree(stack: Stack, run: Run) -> list[Run]:
    """Return a run and all below it, as they are shown."""
    shown = (await stack.runs.GetRun(pb.GetRunRequest(name=run.name), timeout=TIMEOUT_S)).run
    found = [shown]
    listed = await stack.runs.ListRuns(pb.ListRunsRequest(parent=run.name), timeout=TIMEOUT_S)
    for child in listed.runs:
        found += await tree(stack, child)
    return found


async def total(stack: Stack, run: Run) -> int:
    """Return the sum of the calls of a tree."""
    request = pb.GetRunUsageRequest(name=run.name, group_by=pb.GetRunUsageRequest.GROUP_BY_MODEL)
    response = await stack.runs.GetRunUsage(request, timeout=TIMEOUT_S)
    return response.total.cost_usd_nanos


def paid_below(models: TreeGateway, run: Run) -> int:
    """Return what was paid for a run and all below it, by the ledger."""
    calls = [
        paid
        for paid in models.paid.values()
        if run.name in (paid.token.run, *(each.name for each in paid.token.subtrees))
    ]
    return sum(paid.usage.cost_usd_nanos for paid in calls)


@FEW
@given(st.lists(st.tuples(plans(3), ROOT_LIMITS), min_size=4, max_size=6))
async def test_no_tree_spends_more_than_any_part_of_it_may(
    trees: list[tuple[Plan, dict[str, Any]]],
) -> None:
    """And what each run says it spent is what the ledger has of it and all below it."""
    models = TreeGateway()
    with tempfile.TemporaryDirectory() as folder:
        async with plan_trees(Path(folder), models) as (stack, sandbox):
            context = await stack.upload()
            roots = [
                await stack.create(json.dumps(plan), context=context, **limits)
                for plan, limits in trees
            ]
            await asyncio.gather(*[stack.watch(root) for root in roots])

            for root in roots:
                for run in await tree(stack, root):
                    limits, spent = run.spec.limits, run.usage.cost_usd_nanos
                    assert run.state in TERMINAL_STATES
                    assert spent == paid_below(models, run) == await total(stack, run)
                    assert spent <= limits.cost_usd_nanos_max
                    assert run.usage.input_tokens <= limits.tokens_max
                    assert run.sub_calls <= limits.sub_calls_max
                    assert run.depth <= run.depth + limits.depth_max <= 3
                    assert run.children_live == 0
            assert all(models.spent[name] <= most for name, most in models.most.items())
            assert not sandbox.sessions


@FEW
@given(plans(3), st.integers(0, 12))
async def test_cancelling_a_root_reaches_every_run_below_it(plan: Plan, calls: int) -> None:
    """Whenever that comes: before a child, while it is stored, or while it asks."""
    models = TreeGateway()
    plan = {**plan, "children": [plan, plan]}
    with tempfile.TemporaryDirectory() as folder:
        async with plan_trees(Path(folder), models) as (stack, sandbox):
            root = await stack.create(json.dumps(plan), depth_max=3, children_live_max=8)
            watching = asyncio.create_task(stack.watch(root))
            while len(models.requests) < calls and not watching.done():
                await asyncio.wait({watching}, timeout=0.002)

            await stack.runs.CancelRun(pb.CancelRunRequest(name=root.name), timeout=TIMEOUT_S)
            await watching

            runs = await tree(stack, root)
            assert {run.state for run in runs} <= TERMINAL_STATES
            for run in runs:  # a call that was cut off is in the ledger alone
                spent = run.usage.cost_usd_nanos
                assert spent == await total(stack, run) <= paid_below(models, run)
            asked = len(models.requests)
            await asyncio.sleep(0.05)
            assert len(models.requests) == asked
            assert not sandbox.sessions


async def test_children_beyond_the_live_ones_wait(tmp_path: Path, database_url: str) -> None:
    """The most that live at a time is counted by the store, under the parent's lock."""
    models = TreeGateway()
    leaf: Plan = {"calls": 2}
    plan = {"calls": 0, "children": [leaf] * 12}
    async with plan_trees(tmp_path, models, database_url=Secret(database_url)) as (stack, _):
        root = await stack.create(json.dumps(plan), children_live_max=3, sub_calls_max=100)
        watching, most = asyncio.create_task(stack.watch(root)), 0
        while not watching.done():
            request = pb.GetRunRequest(name=root.name)
            run = (await stack.runs.GetRun(request, timeout=TIMEOUT_S)).run
            most = max(most, run.children_live)
            await asyncio.wait({watching}, timeout=0.005)

        runs = await tree(stack, root)
        assert [run.state for run in runs] == [Run.STATE_ANSWERED] * 13
        assert 1 <= most <= 3


async def test_a_tree_goes_on_where_its_orchestrator_stopped(tmp_path: Path) -> None:
    """Children that were there are found and not started again; nothing is paid twice, and what
    was paid is told, also where an answer came that nobody lived to write down."""
    models = TreeGateway()
    leaf: Plan = {"calls": 2}
    plan = {"calls": 1, "children": [{"calls": 1, "children": [leaf]}, leaf]}
    async with plan_trees(tmp_path, models) as (stack, _):
        undisturbed = await stack.create(json.dumps(plan), depth_max=2, children_live_max=8)
        answer = (await stack.watch(undisturbed))[-1].run_changed.answer.text
    calls = len(models.paid)

    for stop_after in range(1, calls, 2):
        (tmp_path / f"{stop_after}").mkdir()
        models = TreeGateway()
        async with plan_trees(tmp_path / f"{stop_after}", models) as (stack, _):
            root = await stack.create(json.dumps(plan), depth_max=2, children_live_max=8)
            await eventually(lambda: len(models.paid) >= stop_after)  # noqa: B023
        async with plan_trees(tmp_path / f"{stop_after}", models) as (stack, sandbox):
            events = await stack.watch(root)

            assert events[-1].run_changed.answer.text == answer
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            runs = await tree(stack, root)
            assert [run.state for run in runs] == [Run.STATE_ANSWERED] * 4
            assert runs[0].usage.cost_usd_nanos == paid_below(models, runs[0])
            assert len(models.paid) == calls
            assert not sandbox.sessions


async def test_what_children_spend_is_seen_while_they_live(tmp_path: Path) -> None:
    """A caller watches one number, whoever spends it."""
    models = TreeGateway()
    low: Plan = {"calls": 2, "children": [{"calls": 1}]}
    async with plan_trees(tmp_path, models) as (stack, _):
        root = await stack.create(json.dumps({"calls": 1, "children": [low]}), depth_max=2)
        await eventually(lambda: len(models.paid) >= 5)
        models.hold.clear()

        async def is_seen() -> bool:
            request = pb.GetRunRequest(name=root.name)
            run = (await stack.runs.GetRun(request, timeout=TIMEOUT_S)).run
            return run.usage.cost_usd_nanos == len(models.paid) * COST_NANOS

        await eventually(is_seen, within_s=1.5)
        assert len(models.paid) < 7
        models.hold.set()
        await stack.watch(root)
        assert await is_seen()
