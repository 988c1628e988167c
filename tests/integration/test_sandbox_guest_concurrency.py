"""Sub-calls at the same time, in the ways that models write them: asyncio and executors.

Calls are at the same time where the gateway gets them as one batch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from common.errors import ServiceError
from tests.support.sandbox import Ran, Sandbox, guest, sandbox

pytestmark = pytest.mark.guest
POOL = "from concurrent.futures import ThreadPoolExecutor, as_completed, wait\n"
ASYNC = "import asyncio\n"


class RefusedError(ServiceError):
    """What a provider answers to a prompt that it does not like."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CONTEXT_UNREADABLE


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


@pytest.fixture
async def session(box: Sandbox) -> str:
    return await box.create()


def batches(ran: Ran) -> list[int]:
    """Return how many calls each batch had, in order; a single call is a batch of 0."""
    numbers = [e.sub_call_started.batch for e in ran.events if e.HasField("sub_call_started")]
    assert ran.ending == "completed", ran.err
    return [numbers.count(number) if number else 0 for number in dict.fromkeys(numbers)]


GATHERED = [
    "r = await asyncio.gather(*[llm_query(p) for p in prompts])",
    "r = await asyncio.gather(*(llm_query(p) for p in prompts))",
    "r = await asyncio.gather(llm_query('a'), llm_query('b'), llm_query('c'))",
    "r = await asyncio.gather(*map(llm_query, prompts))",
    "tasks = [llm_query(p) for p in prompts]\nr = await asyncio.gather(*tasks)",
    (
        "tasks = []\nfor p in prompts:\n    tasks.append(llm_query(p))\n"
        "r = await asyncio.gather(*tasks)"
    ),
    "t = {p: llm_query(p) for p in prompts}\nr = await asyncio.gather(*t.values())",
    "tasks = [asyncio.create_task(llm_query(p)) for p in prompts]\nr = [await t for t in tasks]",
    (
        "async def ask(p):\n    return await llm_query(p)\n"
        "r = await asyncio.gather(*map(ask, prompts))"
    ),
    "async def ask(p):\n    return llm_query(p)\nr = await asyncio.gather(*map(ask, prompts))",
    (
        "async def ask(p):\n    answer = llm_query(p)\n    return answer.strip()\n"
        "async def main():\n    return await asyncio.gather(*[ask(p) for p in prompts])\n"
        "r = asyncio.run(main())"
    ),
    (
        "async def main():\n    tasks = [llm_query(p) for p in prompts]\n"
        "    return await asyncio.gather(*tasks)\nr = asyncio.run(main())"
    ),
    (
        "async def main():\n    return await asyncio.gather(*[llm_query(p) for p in prompts])\n"
        "loop = asyncio.get_event_loop()\nr = loop.run_until_complete(main())\nloop.close()"
    ),
    (
        "async with asyncio.TaskGroup() as group:\n"
        "    tasks = [group.create_task(llm_query(p)) for p in prompts]\n"
        "r = [t.result() for t in tasks]"
    ),
    (
        "sem = asyncio.Semaphore(10)\nasync def ask(p):\n    async with sem:\n"
        "        return await llm_query(p)\nr = await asyncio.gather(*map(ask, prompts))"
    ),
    "r = await asyncio.wait_for(asyncio.gather(*[llm_query(p) for p in prompts]), timeout=60)",
    "r = await asyncio.gather(*[asyncio.wait_for(llm_query(p), 60) for p in prompts])",
    "r = sorted([await t for t in asyncio.as_completed([llm_query(p) for p in prompts])])",
    (
        "done, _ = await asyncio.wait([asyncio.ensure_future(llm_query(p)) for p in prompts])\n"
        "r = sorted(t.result() for t in done)"
    ),
    "r = await asyncio.gather(*[asyncio.to_thread(llm_query, p) for p in prompts])",
    (
        "def ask(p):\n    return llm_query(p)\n"
        "r = await asyncio.gather(*[asyncio.to_thread(ask, p) for p in prompts])"
    ),
    (
        "async def main():\n    loop = asyncio.get_running_loop()\n"
        "    calls = [loop.run_in_executor(None, llm_query, p) for p in prompts]\n"
        "    return await asyncio.gather(*calls)\nr = await main()"
    ),
    "x, y = await asyncio.gather(llm_query_batched(['a', 'b']), llm_query('c'))\nr = [*x, y]",
]


@pytest.mark.parametrize("code", GATHERED)
async def test_what_asyncio_waits_for_together_is_asked_together(
    box: Sandbox, session: str, code: str
) -> None:
    """One by one, two hundred calls would take two hundred times as long."""
    ran = await box.run(session, f"{ASYNC}prompts = ['a', 'b', 'c']\n{code}\nlist(r)")

    assert ran.out == "['re: a', 're: b', 're: c']\n"
    assert batches(ran) == [3]


async def test_two_hundred_tasks_are_one_batch(box: Sandbox, session: str) -> None:
    code = (
        "async def ask(i):\n    await asyncio.sleep(0)\n    text = await llm_query(f'p{i}')\n"
        "    return i, text.upper()\n"
        "r = await asyncio.gather(*[ask(i) for i in range(200)])\n"
        "r[199], [i for i, _ in r] == list(range(200))"
    )

    ran = await box.run(session, ASYNC + code)

    assert ran.out == "((199, 'RE: P199'), True)\n"
    assert batches(ran) == [200]


async def test_tasks_of_several_steps_go_step_by_step(box: Sandbox, session: str) -> None:
    """What has its answer goes on while none waits for a slower one's second question."""
    code = (
        "async def ask(i):\n    first = await llm_query(f'{i}')\n"
        "    return await llm_query(first) if i else first\n"
        "await asyncio.gather(*[ask(i) for i in range(3)])"
    )

    ran = await box.run(session, ASYNC + code)

    assert ran.out == "['re: 0', 're: re: 1', 're: re: 2']\n"
    assert batches(ran) == [3, 2]


async def test_a_semaphore_bounds_how_many_are_asked_at_once(box: Sandbox, session: str) -> None:
    code = (
        "sem = asyncio.Semaphore(2)\nasync def ask(i):\n    async with sem:\n"
        "        return await llm_query(f'{i}')\n"
        "len(await asyncio.gather(*[ask(i) for i in range(4)]))"
    )

    assert batches(await box.run(session, ASYNC + code)) == [2, 2]


async def test_calls_with_different_options_are_batches_of_their_own(
    box: Sandbox, session: str
) -> None:
    code = (
        "await asyncio.gather(llm_query('a'), llm_query('b', max_output_tokens=5), llm_query('c'))"
    )

    ran = await box.run(session, ASYNC + code)

    assert ran.out == "['re: a', 're: b', 're: c']\n"
    assert batches(ran) == [2, 0]


async def test_one_that_fails_does_not_fail_the_others(box: Sandbox, session: str) -> None:
    box.gateway.errors["bad"] = RefusedError("no", context="x")
    code = (
        "r = await asyncio.gather(*[llm_query(p) for p in ['a', 'bad', 'c']], "
        "return_exceptions=True)\n[x if isinstance(x, str) else type(x).__name__ for x in r]"
    )

    ran = await box.run(session, ASYNC + code)

    assert ran.out == "['re: a', 'LLMQueryError', 're: c']\n"
    assert batches(ran) == [3]


async def test_a_failure_can_be_caught_in_its_own_task(box: Sandbox, session: str) -> None:
    box.gateway.errors["bad"] = RefusedError("no", context="x")
    code = (
        "async def ask(p):\n    try:\n        return await llm_query(p)\n"
        "    except LLMQueryError as error:\n        return error.reason\n"
        "await asyncio.gather(*[ask(p) for p in ['a', 'bad']])"
    )

    assert (await box.run(session, ASYNC + code)).out == "['re: a', 'CONTEXT_UNREADABLE']\n"


async def test_a_failure_that_nobody_catches_shows_the_line_of_its_call(
    box: Sandbox, session: str
) -> None:
    box.gateway.errors["bad"] = RefusedError("no", context="x")
    code = "async def ask(p):\n    return await llm_query(p)\nawait asyncio.gather(ask('bad'))"

    ran = await box.run(session, ASYNC + code)

    assert (ran.ending, ran.result.error.type) == ("raised", "LLMQueryError")
    assert 'File "<cell 1>", line 3, in ask' in ran.err
    assert "<fathom" not in ran.err


async def test_a_timeout_throws_no_answer_away(box: Sandbox, session: str) -> None:
    """The wait for sub-models is not the cell's time, and the answer is paid."""
    code = (
        "async def ask():\n    return await llm_query('hold')\n"
        "await asyncio.wait_for(ask(), timeout=0.05)"
    )
    events = box.stream(session, ASYNC + code)
    async for event in events:
        if event.HasField("sub_call_started"):
            break
    other = await box.create(
        limits=session_pb2.SessionLimits(execute_time_max=Duration(nanos=100_000_000))
    )
    # Another cell runs into a limit twice as long meanwhile: so the timeout has passed for sure.
    assert (await box.run(other, "while True:\n    pass")).ending == "timed_out"
    box.gateway.hold.set()

    ran = Ran([event async for event in events])

    assert ran.out == "'re: hold'\n"


async def test_timers_go_on_beside_questions(box: Sandbox, session: str) -> None:
    code = (
        "async def tick():\n    await asyncio.sleep(0.001)\n    return 'tick'\n"
        "await asyncio.gather(llm_query('a'), tick())"
    )

    assert (await box.run(session, ASYNC + code)).out == "['re: a', 'tick']\n"


@pytest.mark.parametrize(
    ("code", "out"),
    [
        ("await llm_query('a')", "'re: a'\n"),
        ("x = llm_query('a')\nawait x", "'re: a'\n"),
        ("await llm_query_batched(['a'])", "['re: a']\n"),
        ("x = llm_query('a')\ntype(x) is str, isinstance(x, str), x", "(False, True, 're: a')\n"),
        ("import asyncio\nasyncio.run(llm_query('a'))", "'re: a'\n"),
        ("x = [llm_query(p) for p in 'ab']\nlen(x), x[0].upper()", "(2, 'RE: A')\n"),
        ("def llm_query(p):\n    return p\nllm_query('mine')", "'mine'\n"),
        ("import json\njson.dumps({'x': llm_query('a')})", '\'{"x": "re: a"}\'\n'),
    ],
)
async def test_an_answer_is_a_text_that_may_be_awaited(
    box: Sandbox, session: str, code: str, out: str
) -> None:
    """Models are never sure which it is."""
    assert (await box.run(session, code)).out == out


async def test_answers_gathered_in_a_later_cell_are_there(box: Sandbox, session: str) -> None:
    await box.run(session, "calls = [llm_query(p) for p in 'ab']")

    ran = await box.run(session, "import asyncio\nawait asyncio.gather(*calls)")

    assert ran.out == "['re: a', 're: b']\n"


async def test_a_cell_that_closes_the_loop_harms_no_later_one(box: Sandbox, session: str) -> None:
    await box.run(session, ASYNC + "asyncio.get_event_loop().close()")

    assert (await box.run(session, "await llm_query('a')")).out == "'re: a'\n"


POOLED = [
    "with ThreadPoolExecutor(max_workers=8) as pool:\n    r = list(pool.map(llm_query, prompts))",
    (
        "pool = ThreadPoolExecutor()\nfutures = [pool.submit(llm_query, p) for p in prompts]\n"
        "r = [f.result() for f in futures]"
    ),
    (
        "with ThreadPoolExecutor() as pool:\n"
        "    futures = [pool.submit(llm_query, p) for p in prompts]\n"
        "r = sorted(f.result() for f in as_completed(futures))"
    ),
    (
        "pool = ThreadPoolExecutor()\nfutures = {pool.submit(llm_query, p): p for p in prompts}\n"
        "found = {}\nfor f in as_completed(futures):\n    found[futures[f]] = f.result()\n"
        "r = [found[p] for p in prompts]"
    ),
    (
        "pool = ThreadPoolExecutor()\nfutures = [pool.submit(llm_query, p) for p in prompts]\n"
        "done, rest = wait(futures)\nassert not rest\nr = [f.result() for f in futures]"
    ),
    (
        "import functools\nask = functools.partial(llm_query, max_output_tokens=9)\n"
        "with ThreadPoolExecutor(4) as pool:\n    r = list(pool.map(ask, prompts))"
    ),
    "with ThreadPoolExecutor() as pool:\n    r = list(pool.map(lambda p: llm_query(p), prompts))",
    (
        "def process(chunk):\n    prompt = f'{chunk}'\n    return llm_query(prompt)\n"
        "with ThreadPoolExecutor(max_workers=10) as pool:\n    r = list(pool.map(process, prompts))"
    ),
    (
        "def ask(p):\n    try:\n        return llm_query(p)\n    except LLMQueryError:\n"
        "        return 'failed'\n"
        "def process(item):\n    i, p = item\n    return i, ask(p)\n"
        "with ThreadPoolExecutor() as pool:\n"
        "    r = [a for _, a in sorted(pool.map(process, enumerate(prompts)))]"
    ),
    (
        "def maker(prefix):\n    return lambda p: (prefix + llm_query(p))[1:]\n"
        "with ThreadPoolExecutor() as pool:\n    r = list(pool.map(maker('!'), prompts))"
    ),
    (
        "found = []\ndef process(p, *, put=found.append):\n    put(llm_query(p))\n"
        "with ThreadPoolExecutor() as pool:\n    for p in prompts:\n"
        "        pool.submit(process, p)\n"
        "r = found"
    ),
    (
        "import concurrent.futures\nwith concurrent.futures.ProcessPoolExecutor() as pool:\n"
        "    r = list(pool.map(llm_query, prompts))"
    ),
    (
        "from concurrent.futures.thread import ThreadPoolExecutor as Pool\n"
        "with Pool(max_workers=3, thread_name_prefix='ask') as pool:\n"
        "    r = list(pool.map(llm_query, prompts))"
    ),
    (
        "import threading\nlock, found = threading.Lock(), {}\n"
        "def process(p):\n    answer = llm_query(p)\n    with lock:\n        found[p] = answer\n"
        "with ThreadPoolExecutor() as pool:\n    list(pool.map(process, prompts))\n"
        "r = [found[p] for p in prompts]"
    ),
    (
        "class Asker:\n    def __init__(self, end):\n        self.end = end\n"
        "    def ask(self, p):\n        return llm_query(p) + self.end\n"
        "with ThreadPoolExecutor() as pool:\n    r = list(pool.map(Asker('').ask, prompts))"
    ),
    (
        "with ThreadPoolExecutor() as a, ThreadPoolExecutor() as b:\n"
        "    r = list(b.map(llm_query, prompts))"
    ),
]


@pytest.mark.parametrize("code", POOLED)
async def test_what_an_executor_is_given_is_asked_together(
    box: Sandbox, session: str, code: str
) -> None:
    ran = await box.run(session, f"{POOL}prompts = ['a', 'b', 'c']\n{code}\nr")

    assert ran.out == "['re: a', 're: b', 're: c']\n"
    assert batches(ran) == [3]


async def test_a_function_of_an_earlier_cell_is_asked_together_too(
    box: Sandbox, session: str
) -> None:
    await box.run(session, "def process(p):\n    text = 'x' + p\n    return llm_query(text)")

    ran = await box.run(session, POOL + "list(ThreadPoolExecutor().map(process, 'ab'))")

    assert ran.out == "['re: xa', 're: xb']\n"
    assert batches(ran) == [2]


@pytest.mark.parametrize(
    "code",
    [
        # One worker keeps its functions apart.
        "def f(p):\n    return llm_query(p)\nr = list(ThreadPoolExecutor(1).map(f, prompts))",
        # A lock is held while it asks: a second one that wants it would wait for ever.
        (
            "import threading\nlock = threading.Lock()\n"
            "def f(p):\n    with lock:\n        return llm_query(p)\n"
            "r = list(ThreadPoolExecutor(4).map(f, prompts))"
        ),
        (
            "import threading\nlock = threading.Lock()\ndef f(p):\n    lock.acquire()\n    try:\n"
            "        return llm_query(p)\n    finally:\n        lock.release()\n"
            "r = list(ThreadPoolExecutor(4).map(f, prompts))"
        ),
    ],
)
async def test_what_must_not_be_interleaved_is_asked_one_by_one(
    box: Sandbox, session: str, code: str
) -> None:
    ran = await box.run(session, f"{POOL}prompts = ['a', 'b', 'c']\n{code}\nr")

    assert ran.out == "['re: a', 're: b', 're: c']\n"
    assert batches(ran) == [0]
    assert ran.kinds().count("sub_call_started") == 3


async def test_other_functions_run_in_order_as_they_are_submitted(
    box: Sandbox, session: str
) -> None:
    code = (
        "order = []\ndef note(x):\n    order.append(x)\n    return x * x\n"
        "with ThreadPoolExecutor() as pool:\n"
        "    futures = [pool.submit(note, i) for i in range(3)]\n"
        "    order.append('between')\n    more = pool.map(note, [3, 4])\n"
        "order, [f.result() for f in futures], list(more)"
    )

    ran = await box.run(session, POOL + code)

    assert ran.out == "([0, 1, 2, 'between', 3, 4], [0, 1, 4], [9, 16])\n"


async def test_loop_variables_are_those_at_the_submission(box: Sandbox, session: str) -> None:
    """As with threads, which begin at once; else every prompt would be the last one."""
    code = (
        "with ThreadPoolExecutor() as pool:\n    futures = []\n    for p in 'abc':\n"
        "        futures.append(pool.submit(lambda: llm_query(p)))\n"
        "[f.result() for f in futures]"
    )

    assert (await box.run(session, POOL + code)).out == "['re: a', 're: b', 're: c']\n"


async def test_an_executors_failures_are_those_of_its_functions(box: Sandbox, session: str) -> None:
    box.gateway.errors["bad"] = RefusedError("no", context="x")
    code = (
        "def f(p):\n    return llm_query(p)\n"
        "with ThreadPoolExecutor() as pool:\n"
        "    futures = [pool.submit(f, p) for p in ('a', 'bad', '')]\n"
        "print([type(x.exception()).__name__ for x in futures], futures[0].result())\n"
        "futures[1].result()"
    )

    ran = await box.run(session, POOL + code)

    assert ran.out == "['NoneType', 'LLMQueryError', 'ValueError'] re: a\n"
    assert (ran.ending, ran.result.error.type) == ("raised", "LLMQueryError")
    assert "line 3, in f\n    return llm_query(p)" in ran.err


async def test_futures_are_the_librarys_own(box: Sandbox, session: str) -> None:
    code = (
        "import concurrent.futures as c\npool = ThreadPoolExecutor()\nseen = []\n"
        "future = pool.submit(llm_query, 'a')\nfuture.add_done_callback(seen.append)\n"
        "print(isinstance(future, c.Future), isinstance(pool, c.Executor), seen == [])\n"
        "print(future.done(), future.result(timeout=1), seen == [future])\n"
        "pool.shutdown()\npool.submit(print)"
    )

    ran = await box.run(session, POOL + code)

    assert ran.out == "True True True\nTrue re: a True\n"
    assert "after shutdown" in ran.result.error.message
