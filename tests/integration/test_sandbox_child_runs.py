"""`rlm_query` from a real guest to a fake orchestrator: answers, failures, contexts, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_pb2 import Run
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from common.errors import ServiceError
from orchestrator.errors import ChildRunRefusedError, NothingLeftError
from sandbox_service import frames
from sandbox_service.child_runs import ChildOrder
from sandbox_service.run_pass import RunPass
from tests.support.sandbox import Sandbox, guest, sandbox

pytestmark = pytest.mark.guest


class FakeChildRuns:
    """Answers each child with its question, unless told otherwise."""

    def __init__(self) -> None:
        self.orders: list[ChildOrder] = []
        self.tokens: list[str] = []
        self.outcomes: dict[str, Run | ServiceError] = {}
        """By question."""
        self.hold = asyncio.Event()
        """Questions that begin with `hold` wait for it."""
        self.held = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def run(self, order: ChildOrder, run_pass: RunPass) -> AsyncIterator[Run]:
        """Tell of a child."""
        self.orders.append(order)
        self.tokens.append(run_pass.token)
        question = order.child.question
        outcome = self.outcomes.get(question)
        if isinstance(outcome, ServiceError):
            raise outcome
        name = f"runs/{order.request_id.replace('/', '-')}"
        yield Run(name=name, state=Run.STATE_RUNNING, depth=1)
        if question.startswith("hold"):
            self.held.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        ended = Run(name=name, state=Run.STATE_ANSWERED, depth=1, sub_calls=2)
        ended.usage.CopyFrom(Usage(input_tokens=10, cost_usd_nanos=7, calls=1))
        ended.answer.text = f"re: {question}"
        if outcome is not None:
            ended.MergeFrom(outcome)
        yield ended


@pytest.fixture
async def children() -> FakeChildRuns:
    return FakeChildRuns()


@pytest.fixture
async def box(tmp_path: Path, children: FakeChildRuns) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path, child_runs=children) as running:
        yield running


async def run(box: Sandbox, session: str, code: str) -> tuple[str, str]:
    """Run a cell as of a run; return its output and how it ended."""
    ran = await box.run(session, code, call_prefix="r1/2/3")
    return ran.out, ran.result.error.type or ran.ending


async def test_a_childs_answer_is_a_text_that_knows_its_run(
    box: Sandbox, children: FakeChildRuns
) -> None:
    session = await box.create()

    out, _ = await run(box, session, "a = rlm_query('what?')\nprint(a, a.run, isinstance(a, str))")

    assert out == "re: what? runs/r1-2-3-c1 True\n"
    assert children.tokens == ["token"]
    assert children.orders[0].request_id == "r1/2/3/c1"
    assert children.orders[0].child.context is None


async def test_children_are_told_of_in_the_stream(box: Sandbox) -> None:
    """The parent's run counts what its children spend by these."""
    session = await box.create()

    ran = await box.run(session, "rlm_query('what?')", call_prefix="r1/2/3")

    assert ran.kinds() == [
        "start",
        "child_run_changed",
        "child_run_finished",
        "output",
        "result",
    ]
    finished = ran.events[2].child_run_finished
    assert (finished.child_run, finished.run.state) == (1, "ANSWERED")
    assert finished.run.usage.cost_usd_nanos == 7


@pytest.mark.parametrize(
    "code",
    [
        "rlm_query_batched(['a', 'b', 'c'])",
        "await asyncio.gather(rlm_query('a'), rlm_query('b'), rlm_query('c'))",
        "list(ThreadPoolExecutor().map(rlm_query, ['a', 'b', 'c']))",
        "rlm_query_batched(('a', 'b', 'c'), contexts=[None, 'x', [1]])",
    ],
)
async def test_a_batch_is_asked_at_once_and_answered_in_order(
    box: Sandbox, children: FakeChildRuns, code: str
) -> None:
    session = await box.create()
    imports = "import asyncio\nfrom concurrent.futures import ThreadPoolExecutor\n"

    out, _ = await run(box, session, imports + code)

    assert out == "['re: a', 're: b', 're: c']\n"
    assert [order.siblings for order in children.orders] == [3, 2, 1]


async def test_a_failing_child_is_a_value_in_a_batch_and_raises_alone(
    box: Sandbox, children: FakeChildRuns
) -> None:
    failed = Run(state=Run.STATE_FAILED)
    failed.error.CopyFrom(ServiceError("no answer").to_status())
    children.outcomes["bad"] = failed
    session = await box.create()

    out, _ = await run(
        box,
        session,
        "answers = rlm_query_batched(['good', 'bad'])\n"
        "print([isinstance(a, str) for a in answers], answers[1].reason, answers[1].run)\n",
    )
    assert out == "[True, False] CHILD_RUN_FAILED runs/r1-2-3-c2\n"

    out, ending = await run(box, session, "rlm_query('bad')")
    assert ending == "ChildRunError"


async def test_a_limit_that_is_used_up_always_raises(box: Sandbox, children: FakeChildRuns) -> None:
    """The run goes on to its last answer: no child would be started any more."""
    children.outcomes["dear"] = NothingLeftError("cost_usd_nanos_max", value=5, spent=5)
    session = await box.create()

    ran = await box.run(session, "rlm_query_batched(['a', 'dear'])", call_prefix="r1/2/3")

    assert ran.result.error.type == "LimitExceededError"
    assert ran.result.HasField("limit_reached")


async def test_a_child_that_is_refused_ends_no_run(box: Sandbox, children: FakeChildRuns) -> None:
    refused = ChildRunRefusedError("runs/r1", "too deep", limit="depth_max")
    children.outcomes["deep"] = refused
    session = await box.create()

    ran = await box.run(session, "rlm_query('deep')", call_prefix="r1/2/3")

    assert ran.result.error.type == "ChildRunError"
    assert not ran.result.HasField("limit_reached")


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("'text'", frames.ChildText(text=frames.ValueText(text="text"))),
        ("[1, {'a': None}]", frames.ChildJson(json='[1, {"a": null}]')),
        (
            "part(3, 9)",
            frames.ChildText(text=frames.SliceText(document="", start=3, stop=9)),
        ),
        (
            "{'a': 'x', 'b': part(0, document='b')}",
            frames.ChildDocuments(
                documents=[
                    frames.ChildDocument(name="a", text=frames.ValueText(text="x")),
                    frames.ChildDocument(
                        name="b", text=frames.SliceText(document="b", start=0, stop=None)
                    ),
                ]
            ),
        ),
    ],
)
async def test_contexts_go_by_value_or_by_place(
    box: Sandbox, children: FakeChildRuns, context: str, expected: object
) -> None:
    session = await box.create()

    await run(box, session, f"rlm_query('q', {context})")

    assert children.orders[0].child.context == expected


async def test_a_lazy_text_goes_by_place(box: Sandbox, children: FakeChildRuns) -> None:
    """What is too large for a session is too large to be sent from it."""
    session = await box.create(
        limits=session_pb2.SessionLimits(memory_bytes_max=80 << 20),
        contexts=[box.text(b"x" * (21 << 20))],
    )

    await run(box, session, "rlm_query('q', context)")

    place = frames.SliceText(document="", start=0, stop=None)
    assert children.orders[0].child.context == frames.ChildText(text=place)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("rlm_query(3)", "TypeError"),
        ("rlm_query('')", "ValueError"),
        ("rlm_query('x' * 70_000)", "ValueError"),
        ("rlm_query('q', '')", "ValueError"),
        ("rlm_query('q', 'x' * (9 << 20))", "ValueError"),
        ("rlm_query('q', object())", "TypeError"),
        ("rlm_query('q', part(5, 3))", "ValueError"),
        ("rlm_query('q', max_usd=-1)", "ValueError"),
        ("rlm_query('q', max_turns=0)", "ValueError"),
        ("rlm_query_batched('q')", "TypeError"),
        ("rlm_query_batched(['a', 'b'], contexts=['x'])", "ValueError"),
    ],
)
async def test_a_call_that_makes_no_sense_is_an_error_before_it_is_made(
    box: Sandbox, children: FakeChildRuns, call: str, error: str
) -> None:
    session = await box.create()

    assert (await run(box, session, call))[1] == error
    assert not children.orders


async def test_options_become_limits(box: Sandbox, children: FakeChildRuns) -> None:
    session = await box.create()

    await run(
        box,
        session,
        "rlm_query('q', tier='sub', max_usd=0.5, max_tokens=9, max_sub_calls=3, max_turns=2, "
        "max_time=4, max_depth=0, max_children=1)",
    )

    child = children.orders[0].child
    assert (child.tier, child.cost_usd_nanos_max, child.tokens_max) == ("sub", 500_000_000, 9)
    assert (child.sub_calls_max, child.turns_max, child.time_max_s) == (3, 2, 4.0)
    assert (child.depth_max, child.children_live_max) == (0, 1)


async def test_a_schema_gives_the_value(box: Sandbox, children: FakeChildRuns) -> None:
    typed = Run()
    typed.answer.text, typed.answer.is_json = '{"n": 3}', True
    children.outcomes["typed"] = typed
    session = await box.create()

    out, _ = await run(box, session, "rlm_query('typed', schema={'type': 'object'})['n'] + 1")

    assert out == "4\n"
    assert children.orders[0].child.schema == '{"type": "object"}'


async def test_sub_calls_of_children_count_as_the_sessions(
    box: Sandbox, children: FakeChildRuns
) -> None:
    """A run's limit of sub-calls is that of the tree below it too."""
    session = await box.create(limits=session_pb2.SessionLimits(sub_calls_max=3))

    await run(box, session, "rlm_query('a')")
    out, ending = await run(box, session, "print(llm_query('b'))\nllm_query('c')")

    assert (out, ending) == ("re: b\n", "LimitExceededError")
    await run(box, session, "rlm_query('d')")
    assert [order.sub_calls_left for order in children.orders] == [3, 0]


async def test_an_interrupted_cell_gives_up_its_call(box: Sandbox, children: FakeChildRuns) -> None:
    session = await box.create()
    running = asyncio.create_task(run(box, session, "rlm_query('hold')"))
    await asyncio.wait_for(children.held.wait(), 20)

    await box.stub.InterruptExecution(wire.InterruptExecutionRequest(name=session), timeout=30)

    assert (await running)[1] == "interrupted"
    await asyncio.wait_for(children.cancelled.wait(), 30)


async def test_without_an_orchestrator_there_are_no_children(tmp_path: Path) -> None:
    async with sandbox(guest(), tmp_path) as alone:
        ran = await alone.run(await alone.create(), "rlm_query('q')", call_prefix="r/1/1")

    assert ran.result.error.type == "ChildRunError"
    assert "not configured" in ran.result.error.message


async def test_an_executions_own_limit_counts_its_own_children_alone(
    box: Sandbox, children: FakeChildRuns
) -> None:
    """What earlier cells took is taken off before, by whoever states the limit."""
    session = await box.create()

    await run(box, session, "rlm_query('a')")
    ran = await box.run(
        session, "rlm_query('b')\nllm_query('c')", call_prefix="r1/2/4", sub_calls_max=3
    )
    assert ran.ending == "completed"
    ran = await box.run(
        session, "rlm_query('b')\nllm_query('c')", call_prefix="r1/2/5", sub_calls_max=2
    )
    assert ran.result.error.type == "LimitExceededError"
