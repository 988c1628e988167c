"""Forks: copies of a live session that share what they come from and go on apart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from tests.support.eventually import eventually
from tests.support.sandbox import Sandbox, details, guest, sandbox
from tests.support.sandbox_calls import refused

pytestmark = pytest.mark.guest
LIMITS = session_pb2.SessionLimits(sub_calls_max=3)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path, workers=2) as running:
        yield running


def pages_of(box: Sandbox) -> int:
    """Memory that the layers of all sessions take, each counted once."""
    files = {f.fd: f.data_bytes for s in box.table.page(0, 1000) for f in s.memory.files()}
    return sum(files.values())


async def test_a_fork_has_the_state_and_both_go_on_apart(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "import re\nclass A:\n    def m(self): return len(items)\nitems = [1]")

    copy = await box.fork(name)
    ours = await box.run(name, "items.append('ours'); items, A().m()")
    theirs = await box.run(copy, "items.append('theirs'); items, A().m(), re.__name__")

    assert ours.out == "([1, 'ours'], 2)\n"
    assert theirs.out == "([1, 'theirs'], 2, 're')\n"


async def test_forks_of_forks_each_keep_their_own(box: Sandbox) -> None:
    """More generations than there are layers to a session: they are merged on the way."""
    names = [await box.create()]
    await box.run(names[0], "path = [0]; ballast = bytearray(b'x' * 1_000_000)")

    for generation in range(1, 13):
        names.append(await box.fork(names[-1]))
        await box.run(names[-1], f"path.append({generation}); ballast[{generation}] = 0")

    for generation, name in enumerate(names):
        ran = await box.run(name, "path, ballast.count(0)")
        assert ran.out == f"({list(range(generation + 1))}, {generation})\n"
        assert len(box.table.find(name).memory.fds) <= 10


async def test_a_fork_survives_the_end_of_what_it_was_copied_from(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = list(range(100_000))")
    copy = await box.fork(name)

    await box.stub.DeleteSession(wire.DeleteSessionRequest(name=name), timeout=30)

    assert (await box.run(copy, "sum(x)")).out == "4999950000\n"


async def test_a_fork_recovers_to_the_state_that_it_was_copied_with(box: Sandbox) -> None:
    """An instance that is stopped is mapped anew from the shared layers and its own."""
    name = await box.create(limits=session_pb2.SessionLimits(fuel_max=500_000_000))
    await box.run(name, "x = ['before']")
    copy = await box.fork(name)
    await box.run(copy, "x.append('copy')")

    for each in (name, copy):
        assert (await box.run(each, "x.clear()\nwhile True: pass")).ending == "out_of_fuel"

    assert (await box.run(name, "x")).out == "['before']\n"
    assert (await box.run(copy, "x")).out == "['before', 'copy']\n"


async def test_a_fork_goes_on_from_what_was_used(box: Sandbox) -> None:
    """Limits of a session are not got around by copying it."""
    name = await box.create(limits=LIMITS, labels={"run": "r1"})
    await box.run(name, "llm_query('a')\nllm_query('b')")

    copy = await box.fork(name, run_token="other", labels={"branch": "1"})
    ran = await box.run(copy, "llm_query('c')\nllm_query('d')")

    assert ran.result.error.type == "LimitExceededError"
    session = await box.session(copy)
    assert (session.executions, session.sub_calls) == (2, 3)
    assert session.limits == (await box.session(name)).limits
    assert session.labels == {"branch": "1"}
    assert box.gateway.tokens == ["token", "token", "other"]
    assert (await box.session(await box.fork(name))).labels == {"run": "r1"}
    start = (await box.run(copy, "1")).events[0].start
    assert start.execution == 3


async def test_a_fork_without_a_token_cannot_ask(box: Sandbox) -> None:
    """The token of a run is not handed on unasked."""
    copy = await box.fork(await box.create())

    assert "no run token" in (await box.run(copy, "llm_query('x')")).err
    assert not box.gateway.tokens


async def test_a_fork_of_a_large_context_shares_it(box: Sandbox) -> None:
    """Nothing of it is copied, whatever the size."""
    data = b"x" * 100_000_000
    name = await box.create(contexts=[box.text(data)])
    await box.fork(name)  # finishes the layer with the context
    before = pages_of(box)

    copies = [await box.fork(name) for _ in range(5)]

    assert pages_of(box) - before < 10_000_000
    for each in (name, *copies):
        assert (await box.run(each, "len(context), context[-3:]")).out == "(100000000, 'xxx')\n"
    assert pages_of(box) - before < 20_000_000


async def test_a_busy_session_is_not_forked(box: Sandbox) -> None:
    name = await box.create()
    call = box.stub.Execute(wire.ExecuteRequest(name=name, code="llm_query('hold')"), timeout=30)
    running = asyncio.create_task(call.read())
    await asyncio.wait_for(box.gateway.held.wait(), 30)

    code, reason, metadata = await refused(box.fork(name))

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    assert metadata == {"session": name}
    await running
    call.cancel()


async def test_a_cell_right_after_a_fork_waits_for_it(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = 0")

    forking = asyncio.create_task(box.table.fork(name))
    await asyncio.sleep(0)
    ran = await box.run(name, "x = 1\nx")

    assert ran.out == "1\n"
    assert (await box.run((await forking).name, "x")).out == "0\n"


async def test_repeating_a_request_id_forks_once(box: Sandbox) -> None:
    name = await box.create()

    both = await asyncio.gather(*[box.fork(name, request_id="a") for _ in range(2)])

    assert both[0] == both[1]
    assert len(box.table) == 2
    code, reason, metadata = await refused(box.fork(name, request_id="a", labels={"k": "v"}))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_REUSED")
    assert metadata == {"request_id": "a"}


async def test_an_unknown_session_is_not_forked(box: Sandbox) -> None:
    assert (await refused(box.fork("sessions/none")))[1] == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize(("sessions_max", "is_room"), [(2, True), (1, False)])
async def test_a_fork_counts_as_a_session(tmp_path: Path, sessions_max: int, is_room: bool) -> None:
    async with sandbox(guest(), tmp_path, sessions_max=sessions_max) as box:
        name = await box.create()
        if is_room:
            await box.fork(name)
        else:
            code, reason, _ = await refused(box.fork(name))
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SANDBOX_CAPACITY")


async def test_nothing_of_a_deleted_fork_is_left(box: Sandbox) -> None:
    """Neither here nor in the workers; descriptors are memory."""
    name = await box.create()
    await box.run(name, "x = [0]")

    def open_files() -> int:
        pids = [os.getpid(), *box.worker_pids()]
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)

    async def one_round() -> None:
        copy = await box.fork(name)
        await box.run(copy, "x.append(1)")
        await box.run(name, "x[0] += 1")
        await box.stub.DeleteSession(wire.DeleteSessionRequest(name=copy), timeout=30)

    async def settled() -> bool:
        return sum(worker.session_count for worker in box.table.pool.workers) == 1

    for _ in range(20):
        await one_round()
    await eventually(settled)
    before, pages = open_files(), pages_of(box)
    for _ in range(100):
        await one_round()
    await eventually(settled)

    # The session's own chain may be anywhere between one layer and the most that it has.
    await eventually(lambda: open_files() - before <= 2 * 10)
    assert pages_of(box) - pages < 10 * 4_000_000
    assert (await box.run(name, "x")).out == "[120]\n"


async def test_a_worker_takes_no_more_sessions_than_it_may(tmp_path: Path) -> None:
    """With a bound of one, no two sessions ever share a process; the refused may ask again."""
    async with sandbox(guest(), tmp_path, workers=2, worker_sessions_max=1) as box:
        sessions = [await box.create(), await box.create()]

        with pytest.raises(grpc.aio.AioRpcError) as full:
            await box.create()
        await box.stub.DeleteSession(wire.DeleteSessionRequest(name=sessions[0]), timeout=30)
        await eventually(lambda: min(w.session_count for w in box.table.pool.workers) == 0)
        session = await box.create()

        assert details(full.value)[:2] == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "SANDBOX_CAPACITY",
        )
        assert (await box.run(session, "1 + 1")).out == "2\n"
