"""Fixed clock and seeded randomness: an execution that repeats bit for bit."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from sandbox_service.guest_build import GuestBuild
from tests.support.sandbox import Ran, Sandbox, details, guest, sandbox

pytestmark = pytest.mark.guest
NOON = 1_700_000_000
CELLS = [
    "import random, secrets, time, uuid, os\nfrom datetime import datetime\nfrom time import sleep",
    "print(random.random(), secrets.token_hex(8), uuid.uuid4(), os.urandom(4).hex())",
    "print(time.time_ns(), time.monotonic_ns(), time.perf_counter(), datetime.now())",
    "sleep(1000)\nprint(time.time(), hash('a'), {'b', 'a', 'c'}, id(object()))",
    "for i in range(20_000): print(i, end=' ')",
    "x = [random.random() for _ in range(1000)]\nsum(x), random.SystemRandom().random()",
    "1 / 0",
    "from asyncio import gather, sleep\nawait gather(sleep(3), sleep(1))\nprint(time.time())",
]


@pytest.fixture(scope="module")
def build() -> GuestBuild:
    return guest()


@pytest.fixture
async def box(build: GuestBuild, tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(build, tmp_path, workers=2) as box:
        yield box


def fixed(seed: int = 7, seconds: int = NOON) -> wire.Determinism:
    return wire.Determinism(clock_time=Timestamp(seconds=seconds), seed=seed)


def seen(ran: Ran) -> tuple[str, str, int]:
    return ran.out, ran.err, ran.result.fuel_used


async def test_two_sessions_do_the_same(box: Sandbox) -> None:
    """The output and the instructions used, over two workers."""
    first, second = [await box.create(determinism=fixed()) for _ in range(2)]

    for cell in CELLS:
        assert seen(await box.run(first, cell)) == seen(await box.run(second, cell))


async def test_numpy_draws_the_same(box: Sandbox) -> None:
    code = "import numpy as np\nprint(np.random.random(3), np.random.default_rng().random(3))"
    sessions = [await box.create(determinism=fixed(), profile="numpy") for _ in range(2)]

    first, second = [await box.run(session, code) for session in sessions]

    assert first.out
    assert seen(first) == seen(second)


async def test_another_seed_draws_differently(box: Sandbox) -> None:
    code = "import os, random\nrandom.random(), os.urandom(8)"
    sessions = [await box.create(determinism=fixed(seed)) for seed in (7, 8, -7)]

    assert len({(await box.run(session, code)).out for session in sessions}) == 3


async def test_each_execution_has_randomness_of_its_own(box: Sandbox) -> None:
    session = await box.create(determinism=fixed())

    drawn = [(await box.run(session, "import os; os.urandom(8)")).out for _ in range(2)]

    assert drawn[0] != drawn[1]


async def test_the_clock_starts_where_it_was_set(box: Sandbox) -> None:
    session = await box.create(determinism=fixed())

    ran = await box.run(session, "import time; int(time.time())")

    assert ran.out == f"{NOON}\n"


async def test_a_sleep_moves_the_clock_and_takes_no_time(box: Sandbox) -> None:
    session = await box.create(determinism=fixed())
    started = time.monotonic()

    ran = await box.run(
        session, "from time import sleep, time\nt = time()\nsleep(86400)\ntime() - t"
    )

    assert time.monotonic() - started < 30
    assert float(ran.out) == pytest.approx(86400, abs=0.5)


async def test_the_clock_goes_on_from_one_execution_to_the_next(box: Sandbox) -> None:
    """It never goes back, also after a sleep."""
    session = await box.create(determinism=fixed())
    await box.run(session, "from time import monotonic, sleep\nsleep(500)\nbefore = monotonic()")

    ran = await box.run(session, "import time; monotonic() > before, int(time.time())")

    assert ran.out == f"(True, {NOON + 500})\n"


async def test_an_undone_execution_moves_no_clock(box: Sandbox) -> None:
    """How far it came is not the same each time."""
    session = await box.create(determinism=fixed())
    await box.run(session, "import os\nfrom time import sleep\nsleep(500)\nos._exit(1)")

    ran = await box.run(session, "import time; int(time.time())")

    assert ran.out == f"{NOON}\n"


async def test_a_spin_on_the_clock_ends(box: Sandbox) -> None:
    """Computing moves the clock as well."""
    session = await box.create(determinism=fixed())

    ran = await box.run(
        session, "import time\nend = time.time() + 0.2\nwhile time.time() < end: pass"
    )

    assert ran.ending == "completed"


async def test_a_cell_after_a_trap_does_the_same(box: Sandbox) -> None:
    """A session that was taken back to its image goes on as the one that was not."""
    sessions = [await box.create(determinism=fixed()) for _ in range(2)]
    for session, code in zip(sessions, ("x = 5", "x = 5"), strict=True):
        await box.run(session, code)
    await box.run(sessions[0], "x = 6\nimport os; os._exit(0)")
    await box.run(sessions[1], "x = 6\nimport os; os._exit(1)")

    first, second = [
        seen(await box.run(session, "import random, time; x, random.random(), time.time()"))
        for session in sessions
    ]

    assert first == second


async def forked(box: Sandbox, session: str) -> str:
    request = wire.ForkSessionRequest(name=session)
    return str((await box.stub.ForkSession(request, timeout=30)).session.name)


async def restored(box: Sandbox, session: str) -> str:
    request = wire.CheckpointSessionRequest(name=session)
    key = (await box.stub.CheckpointSession(request, timeout=30)).checkpoint.key
    back = wire.RestoreSessionRequest(checkpoint_key=key)
    return str((await box.stub.RestoreSession(back, timeout=30)).session.name)


async def evicted(box: Sandbox, session: str) -> str:
    await box.table.evict(box.table.find(session))
    assert (await box.session(session)).state == session_pb2.Session.STATE_EVICTED
    return session


@pytest.mark.parametrize("moved", [forked, restored, evicted])
async def test_a_session_that_was_moved_does_the_same(
    box: Sandbox, moved: Callable[[Sandbox, str], Awaitable[str]]
) -> None:
    """Nothing but its memory, its clock and the number of the execution decide."""
    stayed, other = [await box.create(determinism=fixed()) for _ in range(2)]
    for cell in CELLS[:5]:
        await box.run(stayed, cell)
        await box.run(other, cell)
    other = await moved(box, other)

    for cell in CELLS[1:]:
        assert seen(await box.run(stayed, cell)) == seen(await box.run(other, cell))


@pytest.mark.parametrize("seconds", [-1, 7_258_118_400])
async def test_a_clock_before_1970_or_after_2200_is_refused(box: Sandbox, seconds: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(determinism=fixed(seconds=seconds))

    code, reason, metadata = details(caught.value)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata["field"] == "determinism.clock_time"


async def test_a_clock_is_required(box: Sandbox) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(determinism=wire.Determinism(seed=1))

    assert details(caught.value)[2]["field"] == "determinism.clock_time"
