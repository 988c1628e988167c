"""Every hostile guest against the real service: it ends as it should, and nobody else notices."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from tests.hostile.corpus import HostileGuest, hostile_guests
from tests.hostile.responsiveness import watched
from tests.support.eventually import eventually
from tests.support.sandbox import Sandbox, details, guest, sandbox

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]
GUESTS = hostile_guests()
GUESTS_MIN = 190
STORED = ("allocate_fragments", "door_reentered", "gc_frozen", "hook_atexit", "streams_closed")
"""Those that are checkpointed as well: each leaves its memory in a state of its own."""
TOKEN = "run-token-of-the-corpus"
ANSWER_S_MAX = 0.1
"""What an answer of the service may take, whatever its guests do."""
ATTACKS_MAX = 8
"""A stall of the machine does not come back with the same guest; a guest's own harm does."""
GROWTH_BYTES_MAX = 8 << 20
"""What a worker may hold of a session that is gone: its allocator's own habits."""
GROWTH_TOTAL_BYTES_MAX = 24 << 20
"""The same over all guests together: nothing is left that adds up."""
WITNESS = '"""as before"""\nwitness = [7]'
TESTIMONY = "(witness, __doc__.split('\\n')[0])"
"""A cell's docstring lands in `__doc__`: so it tells whether anything of the cell has stayed."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    objects = tmp_path_factory.mktemp("objects")
    async with sandbox(guest(), objects, lazy_context_bytes_min=1 << 20) as running:
        # What a worker takes for good it takes with its first sessions.
        for _ in range(3):
            name = await running.create()
            await running.run(name, "import numpy")
            await running.stub.DeleteSession(wire.DeleteSessionRequest(name=name))
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def context(box: Sandbox) -> session_pb2.ContextMount:
    """A text that is mounted by reference: many lines, a long one, and every width of character."""
    lines = "".join(f"line {number} \u00e9\u20ac\U0001f600\n" for number in range(100_000))
    return box.text((lines + "a" * (2 << 20) + "\n").encode())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory_at_first(box: Sandbox) -> int:
    return memory_bytes(box)


def memory_bytes(box: Sandbox) -> int:
    """Return what the one worker holds in memory that is no file's."""
    (pid,) = box.worker_pids()
    status = Path(f"/proc/{pid}/status").read_text()
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(sizes[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem", "VmSwap"))


def open_files(box: Sandbox) -> int:
    (pid,) = box.worker_pids()
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(int(value * 1000))
    return duration


def limits(hostile: HostileGuest) -> session_pb2.SessionLimits:
    given = hostile.limits
    return session_pb2.SessionLimits(
        memory_bytes_max=int(given["memory_mib"]) << 20,
        fuel_max=int(given["fuel"]),
        execute_time_max=seconds(given["time_s"]),
        output_bytes_max=int(given["output_bytes"]),
        sub_calls_max=int(given["sub_calls"]),
        session_fuel_max=int(given["session_fuel"]),
        session_time_max=seconds(given["session_time_s"]),
    )


async def create(box: Sandbox, hostile: HostileGuest, context: session_pb2.ContextMount) -> str:
    return await box.create(
        run_token=TOKEN,
        limits=limits(hostile),
        profile=hostile.profile,
        contexts=[context] if hostile.has_context else [],
    )


async def delete(box: Sandbox, name: str) -> None:
    """Delete a session, if it still exists."""
    try:
        await box.stub.DeleteSession(wire.DeleteSessionRequest(name=name, allow_missing=True))
    except grpc.aio.AioRpcError as error:
        assert details(error)[1] == "SESSION_LOST"


async def attack(
    box: Sandbox, context: session_pb2.ContextMount, hostile: HostileGuest, neighbour: str
) -> float:
    """Let the guest do its worst beside its neighbour; return the service's slowest answer [s]."""
    async with watched(lambda: box.stub.GetSandboxInfo(wire.GetSandboxInfoRequest())) as watch:
        attacked = await create(box, hostile, context)
        await box.run_in_time(attacked, WITNESS)
        ran, beside = await asyncio.gather(
            box.run(attacked, hostile.code, report_variables=True),
            box.run(neighbour, "len(kept_by_the_neighbour)"),
        )
        assert (ran.ending, ran.result.error.type) == (hostile.ending, hostile.error_type)
        assert ran.result.state_kept == (hostile.fate in ("kept", "lost"))
        assert hostile.finds <= {finding.pattern for finding in ran.result.findings}
        await assert_fate(box, attacked, hostile)
        await delete(box, attacked)
    assert beside.out == "21\n"
    return watch.slowest_s


@pytest.mark.parametrize("hostile", GUESTS, ids=[hostile.name for hostile in GUESTS])
async def test_a_hostile_guest_harms_its_own_session_at_most(
    box: Sandbox, context: session_pb2.ContextMount, memory_at_first: int, hostile: HostileGuest
) -> None:
    """It ends as its header says; its worker, its neighbour and the service go on as before."""
    pids, files, memory = box.worker_pids(), open_files(box), memory_bytes(box)
    neighbour = await box.create()
    await box.run(neighbour, "kept_by_the_neighbour = 'mark-of-the-neighbour'")

    slowest_s = [await attack(box, context, hostile, neighbour)]
    while slowest_s[-1] >= ANSWER_S_MAX and len(slowest_s) < ATTACKS_MAX:
        slowest_s.append(await attack(box, context, hostile, neighbour))
    assert min(slowest_s) < ANSWER_S_MAX, slowest_s

    assert (await box.run(neighbour, "kept_by_the_neighbour")).out == "'mark-of-the-neighbour'\n"
    await delete(box, neighbour)
    assert box.worker_pids() == pids
    await eventually(lambda: open_files(box) <= files)
    await eventually(lambda: memory_bytes(box) < memory + GROWTH_BYTES_MAX)
    assert memory_bytes(box) < memory_at_first + GROWTH_TOTAL_BYTES_MAX


async def assert_fate(box: Sandbox, name: str, hostile: HostileGuest) -> None:
    """Check what the next cell finds, in the session and in a copy of it."""
    if hostile.fate == "lost":
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await box.run(name, "1")
        assert details(caught.value)[:2] == (grpc.StatusCode.NOT_FOUND, "SESSION_LOST")
        another = await box.create()
        assert (await box.run(another, "6 * 7")).out == "42\n"
        await delete(box, another)
        return
    if hostile.fate == "spent":
        assert (await box.run(name, "1")).ending == hostile.ending
        return
    doc = ast.get_docstring(ast.parse(hostile.code)) if hostile.fate == "kept" else "as before"
    assert doc
    expected = f"{([7], doc.splitlines()[0])!r}\n"
    response = await box.stub.ForkSession(wire.ForkSessionRequest(name=name))
    assert (await box.run_in_time(name, TESTIMONY)).out == expected
    assert (await box.run_in_time(response.session.name, TESTIMONY)).out == expected
    await delete(box, response.session.name)


@pytest.mark.parametrize("name", STORED)
async def test_a_session_full_of_garbage_is_stored_and_comes_back(
    box: Sandbox, context: session_pb2.ContextMount, name: str
) -> None:
    """Whatever a guest has made of its memory is memory like any other."""
    hostile = next(hostile for hostile in GUESTS if hostile.name == name)
    attacked = await create(box, hostile, context)
    await box.run(attacked, WITNESS)
    await box.run(attacked, hostile.code)
    expected = (await box.run(attacked, TESTIMONY)).out

    stored = await box.stub.CheckpointSession(wire.CheckpointSessionRequest(name=attacked))
    await delete(box, attacked)
    restored = await box.stub.RestoreSession(
        wire.RestoreSessionRequest(checkpoint_key=stored.checkpoint.key)
    )

    assert (await box.run(restored.session.name, TESTIMONY)).out == expected
    await delete(box, restored.session.name)


async def test_there_are_guests_enough() -> None:
    """A corpus that is not found would be a corpus that passes."""
    assert len(GUESTS) >= GUESTS_MIN
    assert {hostile.fate for hostile in GUESTS} == {"kept", "restored", "lost", "spent"}
