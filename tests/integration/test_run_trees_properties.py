"""What holds for every tree of runs, whatever its code does."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import Run
from google.protobuf.duration_pb2 import Duration

from common.config import Secret
from common.errors import ReceivedError
from orchestrator.runs.log.record import TERMINAL_STATES
from tests.support.eventually import eventually
from tests.support.orchestrator import TIMEOUT_S, Stack
from tests.support.plan_sandbox import Plan
from tests.support.priced_trees import LedgerFile, PricedTrees, Spent, priced_trees
from tests.support.processor_time import ProcessorWatch
from tests.support.run_trees import plan_trees
from tests.support.tree_gateway import COST_NANOS, TreeGateway

SEEDS = int(os.environ.get("TREE_SEEDS", "18"))
"""Trees a property is tried on. They grow with their seeds: the first that fails is a small one."""
_AT_ONCE = 8
_CANCEL_S = 1.0
"""For a tree to end that is called off, but for what other processes take of the machine."""
_STILL_S = 10.0
"""How long nothing may happen while a tree has not ended; as above."""
_CALL_NANOS = 1_000_000
"""A call may take one to five of these."""


def plan_of(draw: random.Random, *, depth: int, width: int) -> Plan:
    """Return a plan of a tree that is at most so deep and wide: what each run calls and takes,
    what it lets its children have, and how it goes wrong."""
    children = draw.randint(0, width) if depth else 0
    plan: Plan = {
        "calls": draw.randint(0, 3),
        "share": draw.choice([0, 10, 50, 100]),
        "children": [plan_of(draw, depth=depth - 1, width=width) for _ in range(children)],
    }
    asked = {
        "cost_usd_nanos_max": draw.randint(0, 40) * _CALL_NANOS,
        "tokens_max": draw.randint(1, 60_000),
        "sub_calls_max": draw.randint(0, 6),
        "depth_max": draw.randint(0, 4),
        "children_live_max": draw.randint(0, 4),
    }
    some: Plan = {
        "asked": {name: value for name, value in asked.items() if draw.random() < 0.25},
        "prompt": f"{draw.choice([-1, 0, 50, 100])} of it {'x' * 100}",
        "fails": True,
        "raises": True,
        "schema": draw.choice(['{"type": "array"}', '{"type": "object"}']),
        "tier": draw.choice(["root", "sub"]),
    }
    often = {"asked": 0.5, "prompt": 0.9}
    return plan | {n: v for n, v in some.items() if draw.random() < often.get(n, 0.15)}


def tree_of(seed: int, *, width: int = 3) -> tuple[random.Random, Plan, dict[str, Any]]:
    """Return a tree and the limits of its root, and what to draw more from."""
    draw = random.Random(seed)
    plan = plan_of(draw, depth=min(4, seed // 2), width=min(width, 1 + seed // 6))
    limits = {
        "cost_usd_nanos_max": draw.randint(4, 200) * _CALL_NANOS,
        "sub_calls_max": draw.randint(0, 30),
        "depth_max": draw.randint(0, 4),
        "children_live_max": draw.randint(1, 6),
        "turns_max": draw.randint(1, 2),
    }
    if draw.random() < 0.3:
        limits["tokens_max"] = draw.randint(5_000, 200_000)
    return draw, plan, limits


async def try_all(check: Callable[[int], Awaitable[None]]) -> None:
    """Check all seeds, some at a time; the first that fails is told with its number."""

    async def tried(seed: int) -> None:
        try:
            await check(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}: {tree_of(seed)[1:]}")
            raise

    for first in range(0, SEEDS, _AT_ONCE):
        seeds = range(first, min(first + _AT_ONCE, SEEDS))
        outcomes = await asyncio.gather(*map(tried, seeds), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome


@pytest.fixture
async def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PricedTrees]:
    """What serves all trees of a test. On a busy machine the gateway may need longer to say what
    calls took than a run waits that is to end soon."""
    monkeypatch.setattr("orchestrator.runs.settlement._TIMEOUT_S", 60.0)
    async with priced_trees(tmp_path, depth_max=4, runs_running_max=64) as serving:
        yield serving


async def tree(stack: Stack, run: Run) -> list[Run]:
    """Return a run and all below it, as they are shown."""
    shown = (await stack.runs.GetRun(pb.GetRunRequest(name=run.name), timeout=TIMEOUT_S)).run
    found = [shown]
    listed = await stack.runs.ListRuns(pb.ListRunsRequest(parent=run.name), timeout=TIMEOUT_S)
    for child in listed.runs:
        found += await tree(stack, child)
    return found


async def to_its_end(priced: PricedTrees, run: Run) -> None:
    """Return when a run has ended. How long that takes depends on how many others run; but as long
    as it has not, models are asked again and again."""
    watching = asyncio.create_task(_watched(priced.stack, run))
    asked, since = priced.provider.asked, ProcessorWatch()
    while not (await asyncio.wait({watching}, timeout=0.1))[0]:
        if asked != priced.provider.asked:
            asked, since = priced.provider.asked, ProcessorWatch()
        assert since.passed_s <= _STILL_S, f"{run.name} stands still"
    await watching


async def _watched(stack: Stack, run: Run) -> None:
    async for _ in stack.runs.WatchRun(pb.WatchRunRequest(name=run.name)):
        pass


def below(runs: list[Run], top: Run) -> list[Run]:
    """Return a run and all below it, of those of a tree."""
    children = [run for run in runs if run.parent == top.name]
    return [top, *(each for child in children for each in below(runs, child))]


async def usage_by_run(stack: Stack, run: Run) -> tuple[Usage, dict[str, Usage]]:
    """Return the sum of the calls of a tree, and that of each of its runs."""
    request = pb.GetRunUsageRequest(name=run.name, group_by=pb.GetRunUsageRequest.GROUP_BY_RUN)
    response = await stack.runs.GetRunUsage(request, timeout=TIMEOUT_S)
    return response.total, {group.key: group.usage for group in response.groups}


def spent_of(usage: Usage) -> Spent:
    """Return what a usage tells."""
    return Spent(
        usage.cost_usd_nanos, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens
    )


def spent_below(ledger: LedgerFile, runs: list[Run], top: Run) -> Spent:
    """Return what the ledger has of a run and all below it."""
    by_run = ledger.spent_by_run()
    names = [run.name.removeprefix("runs/") for run in below(runs, top)]
    return sum((by_run[name] for name in names), Spent())


class Watch:
    """Looks at every limit whenever a call arrives at the provider: what is reserved and spent must
    fit then, and not just when all is over."""

    def __init__(self, priced: PricedTrees) -> None:
        self.most: dict[str, tuple[int, int]] = {}
        """The most tokens and money that were claimed of each run, by id."""
        self._ledger = priced.ledger
        priced.provider.on_call = self.look

    def look(self) -> None:
        """Take down what is claimed at this moment."""
        for run, claimed in self._ledger.claimed_by_run().items():
            tokens, cost = self.most.get(run, (0, 0))
            self.most[run] = (max(tokens, claimed.tokens), max(cost, claimed.cost_usd_nanos))


def is_whole(run: Run) -> bool:
    """Whether a run ended as one may whose model answers: children's failures are values."""
    if run.state in {Run.STATE_ANSWERED, Run.STATE_PARTIAL}:
        return True
    plan: Plan = json.loads(run.spec.question)
    reason = ReceivedError(run.error).reason
    return bool(plan.get("fails")) or reason == ErrorReason.ERROR_REASON_RUN_NO_ANSWER


def paid_below(models: TreeGateway, run: Run) -> int:
    """Return what was paid for a run and all below it, by the ledger."""
    calls = [
        paid
        for paid in models.paid.values()
        if run.name in (paid.token.run, *(each.name for each in paid.token.subtrees))
    ]
    return sum(paid.usage.cost_usd_nanos for paid in calls)


async def test_no_tree_spends_more_than_any_part_of_it_may(priced: PricedTrees) -> None:
    """And what each run says it spent is what the ledger has of it and all below it."""
    stack, watch = priced.stack, Watch(priced)

    async def check(seed: int) -> None:
        _, plan, limits = tree_of(seed)
        root = await stack.create(json.dumps(plan), **limits)
        await to_its_end(priced, root)

        runs = await tree(stack, root)
        for run in runs:
            spent, at_most = spent_below(priced.ledger, runs, run), run.spec.limits
            total, by_run = await usage_by_run(stack, run)
            assert run.state in TERMINAL_STATES
            assert is_whole(run), run.error.message
            assert spent_of(run.usage) == spent == spent_of(total)
            assert sum(map(spent_of, by_run.values()), Spent()) == spent
            assert spent.cost_usd_nanos <= at_most.cost_usd_nanos_max
            assert spent.tokens <= at_most.tokens_max
            tokens, cost = watch.most.get(run.name.removeprefix("runs/"), (0, 0))
            assert cost <= at_most.cost_usd_nanos_max
            assert tokens <= at_most.tokens_max
            assert run.sub_calls <= at_most.sub_calls_max
            assert 0 <= at_most.depth_max <= 4 - run.depth
            assert run.children_live == 0

    await try_all(check)
    await eventually(lambda: priced.ledger.is_at_rest)
    assert not priced.sandbox.sessions


async def test_cancelling_a_run_reaches_every_run_below_it(
    priced: PricedTrees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever that comes: before a child, while it is stored, or while it asks. Nothing stays
    reserved, and what is above the run goes on."""
    # Models answer at once here; what a busy machine delays is waited for.
    monkeypatch.setattr("orchestrator.runs.settlement._GRACE_S", 9.0)
    for module in ("queue", "children.told"):
        monkeypatch.setattr(f"orchestrator.runs.{module}._PATIENCE_S", 60.0)
    stack, provider = priced.stack, priced.provider

    async def check(seed: int) -> None:
        draw, plan, _ = tree_of(seed, width=2)
        plan = {"calls": 1, "children": [plan, plan]}
        root = await stack.create(json.dumps(plan), depth_max=4, children_live_max=8, turns_max=2)
        watching, step = asyncio.create_task(to_its_end(priced, root)), draw.randint(0, 60)
        begun = provider.asked
        while provider.asked < begun + step and not watching.done():
            await asyncio.wait({watching}, timeout=0.002)

        top = draw.choice(await tree(stack, root))
        await stack.runs.CancelRun(pb.CancelRunRequest(name=top.name), timeout=TIMEOUT_S)
        cancelled_s, since = time.time(), ProcessorWatch()
        await watching
        within_s = _CANCEL_S + since.waited_s

        runs = await tree(stack, root)
        top = next(run for run in runs if run.name == top.name)
        for run in below(runs, top):
            assert run.create_time.ToNanoseconds() / 1e9 <= cancelled_s
            assert run.end_time.ToNanoseconds() / 1e9 <= cancelled_s + within_s
        for run in runs:  # also of calls that were cut off
            spent = spent_of(run.usage)
            assert run.state in TERMINAL_STATES
            assert not run.usage_incomplete
            assert spent == spent_below(priced.ledger, runs, run)
            assert spent == spent_of((await usage_by_run(stack, run))[0])
            assert spent.cost_usd_nanos <= run.spec.limits.cost_usd_nanos_max
        if top.name != root.name:
            assert is_whole(runs[0]), runs[0].error.message

    await try_all(check)
    await eventually(lambda: priced.ledger.is_at_rest)
    asked = provider.asked
    assert not priced.sandbox.sessions
    last = await stack.create(json.dumps({"calls": 1}), turns_max=1)
    await to_its_end(priced, last)
    assert provider.asked == asked + 2, "somebody but the last run still asks"


async def test_what_a_limit_of_time_cuts_off_is_in_the_usage(priced: PricedTrees) -> None:
    """In the root and below: calls that were under way when the time for work was over."""
    stack, provider = priced.stack, priced.provider
    plan: Plan = {"calls": 3, "children": [{"calls": 2}]}
    calls_above = 1 + 3
    for time_s in (2, 6, 18):  # on a slow machine no child asks within the first
        begun = provider.asked

        def hang(begun: int = begun) -> None:
            if provider.asked > begun + calls_above:
                provider.hold.clear()

        provider.on_call = hang
        time_max = Duration(seconds=time_s)
        root = await stack.create(json.dumps(plan), depth_max=1, turns_max=2, time_max=time_max)
        await to_its_end(priced, root)
        provider.hold.set()
        if provider.asked > begun + calls_above:
            break

    runs = await tree(stack, root)
    assert len(runs) == 2
    assert [run.usage.estimated for run in runs] == [True, True], "something was cut off"
    for run in runs:
        assert not run.usage_incomplete
        spent = spent_of(run.usage)
        assert spent == spent_below(priced.ledger, runs, run)
        assert spent == spent_of((await usage_by_run(stack, run))[0])


async def test_a_tree_whose_models_hang_ends_within_a_second_of_being_called_off(
    priced: PricedTrees,
) -> None:
    """None of its runs would end by itself, wherever it is: each has to be told."""
    stack, provider = priced.stack, priced.provider

    async def check(seed: int) -> None:
        _, plan, _ = tree_of(seed, width=2)
        hangs_at = provider.asked + seed % 4 + 1

        def hang() -> None:
            if provider.asked >= hangs_at:
                provider.hold.clear()

        provider.hold.set()
        provider.on_call = hang
        plan = {"calls": 1, "children": [plan, plan]}
        root = await stack.create(json.dumps(plan), depth_max=4, children_live_max=8)
        await eventually(lambda: provider.asked >= hangs_at)
        await stack.runs.CancelRun(pb.CancelRunRequest(name=root.name), timeout=TIMEOUT_S)
        cancelled_s, since = time.time(), ProcessorWatch()
        await to_its_end(priced, root)
        within_s = _CANCEL_S + since.waited_s

        for run in await tree(stack, root):
            assert run.state in TERMINAL_STATES
            assert run.end_time.ToNanoseconds() / 1e9 <= cancelled_s + within_s

    for seed in range(8):
        await check(seed)
    await eventually(lambda: priced.ledger.is_at_rest)


async def test_children_beyond_the_live_ones_wait(tmp_path: Path, database_url: str) -> None:
    """The most that live at a time is counted by the store, under the parent's lock."""
    leaf: Plan = {"calls": 2}
    plan = {"calls": 0, "children": [leaf] * 12}
    models, seen = held_up(leaf)
    async with plan_trees(tmp_path, models, database_url=Secret(database_url)) as (stack, _):
        root = await stack.create(json.dumps(plan), children_live_max=3, sub_calls_max=100)
        watching, most = asyncio.create_task(stack.watch(root)), 0
        while not watching.done():
            request = pb.GetRunRequest(name=root.name)
            run = (await stack.runs.GetRun(request, timeout=TIMEOUT_S)).run
            most = max(most, run.children_live)
            if most >= 3:
                seen.set()
            await asyncio.wait({watching}, timeout=0.005)

        runs = await tree(stack, root)
        assert [run.state for run in runs] == [Run.STATE_ANSWERED] * 13
        assert most == 3


def held_up(plan: Plan) -> tuple[TreeGateway, asyncio.Event]:
    """Return models, and what has to be set before runs of a plan go on."""
    question, may_go_on = json.dumps(plan), asyncio.Event()

    async def reply(_: str) -> str:
        await may_go_on.wait()
        return f"```repl\n{question}\n```"

    return TreeGateway({question: [reply]}), may_go_on


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
    leaf: Plan = {"calls": 1}
    low: Plan = {"calls": 2, "children": [leaf]}
    models, may_go_on = held_up(leaf)
    async with plan_trees(tmp_path, models) as (stack, _):
        root = await stack.create(json.dumps({"calls": 1, "children": [low]}), depth_max=2)
        await eventually(lambda: len(models.paid) == 5)

        async def is_seen() -> bool:
            request = pb.GetRunRequest(name=root.name)
            run = (await stack.runs.GetRun(request, timeout=TIMEOUT_S)).run
            return run.usage.cost_usd_nanos == len(models.paid) * COST_NANOS

        await eventually(is_seen)
        assert len(models.paid) == 5
        may_go_on.set()
        await stack.watch(root)
        assert await is_seen()
