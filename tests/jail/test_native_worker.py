"""The worker as the service starts it, with native code in the place of a guest."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox_service import frames
from sandbox_service.jail.walls import REMEDIES, WALLS
from sandbox_service.worker_process import WorkerProcess
from tests.jail.attempts import Surroundings
from tests.jail.probing import surroundings
from tests.jail.test_whole_jail import DEADLY, REFUSED, SEEN
from tests.support.eventually import eventually
from tests.support.sandbox import guest

pytestmark = pytest.mark.guest
COMMAND = (sys.executable, "-I", "-m", "tests.jail.native_worker")
NICENESS = 3
UNHARMED = {name: seen for name, seen in SEEN.items() if not seen.startswith("killed")}


@pytest.fixture(scope="module")
def around() -> Iterator[Surroundings]:
    with surroundings() as found:
        yield found


@asynccontextmanager
async def native_worker() -> AsyncIterator[WorkerProcess]:
    """Start a worker as the pool does."""
    worker = WorkerProcess(guest(), COMMAND, niceness=NICENESS, require_jail=True)
    try:
        await worker.greet()
        yield worker
    finally:
        await worker.end()


async def outcome(worker: WorkerProcess, attempt: str, around: Surroundings) -> str:
    """Have the worker make an attempt, in a thread such as cells run in."""
    code = json.dumps([attempt, dataclasses.asdict(around)])
    await worker._send(frames.Run(session=1, execution=1, code=code, report_variables=False))
    try:
        answer = await worker._first_frame()
    except OSError:
        status = await asyncio.to_thread(worker._process.wait)
        return f"killed by {signal.Signals(-status).name}"
    assert isinstance(answer, frames.Output)
    return answer.text


async def test_a_worker_says_which_walls_stand() -> None:
    async with native_worker() as worker:
        walls = {wall.name: wall for wall in worker.walls}

    assert list(walls) == list(WALLS)
    assert all(walls[name].raised for name in REMEDIES)
    assert all(wall.raised != bool(wall.detail) for wall in worker.walls)


async def test_native_code_in_a_worker_is_refused_everything(around: Surroundings) -> None:
    async with native_worker() as worker:
        outcomes = {name: await outcome(worker, name, around) for name in REFUSED}

    assert outcomes == dict.fromkeys(REFUSED, "EPERM")


async def test_native_code_in_a_worker_finds_nothing_left_lying(around: Surroundings) -> None:
    async with native_worker() as worker:
        outcomes = {name: await outcome(worker, name, around) for name in UNHARMED}

    assert outcomes == UNHARMED


@pytest.mark.parametrize("attempts", [DEADLY[:8], DEADLY[8:16], DEADLY[16:]])
async def test_an_attack_ends_the_worker(around: Surroundings, attempts: tuple[str, ...]) -> None:
    outcomes = {}
    for name in attempts:
        async with native_worker() as worker:
            outcomes[name] = await outcome(worker, name, around)

    assert outcomes == dict.fromkeys(attempts, "killed by SIGSYS")


async def test_a_worker_has_only_the_files_that_it_opened(around: Surroundings) -> None:
    """Standard input, output and error, the socket, the page map, the library, the compiled
    guest and the warm images."""
    async with native_worker() as worker:
        count = int(await outcome(worker, "count_open_descriptors", around))

    assert count <= 7 + len(guest().warm_images)


async def test_the_page_map_hides_where_in_the_machines_memory_a_page_is(
    around: Surroundings,
) -> None:
    """A service started as root could see that, and its workers must not."""
    async with native_worker() as worker:
        assert await outcome(worker, "see_physical_addresses", around) == "none"


async def test_workers_let_others_go_first() -> None:
    """The service answers while every worker computes."""
    async with native_worker() as worker:
        stat = _stat(worker.pid)

    assert int(stat[16]) == NICENESS


async def test_a_worker_ends_with_the_service() -> None:
    """Also where that was killed, and while a cell runs that reads no socket."""
    program = (
        "import asyncio, sys, time\n"
        "from tests.jail.test_native_worker import native_worker\n"
        "async def run():\n"
        "    async with native_worker() as worker:\n"
        "        print(worker.pid, flush=True)\n"
        "        worker._process.send_signal(19)\n"
        "        sys.stdin.read()\n"
        "asyncio.run(run())"
    )
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-c", program),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert service.stdout is not None
    pid = int(await service.stdout.readline())
    assert _stat(pid)

    service.kill()
    await service.wait()

    await eventually(lambda: _stat(pid)[:1] in ([], ["Z"]))


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of a process, from its state on; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
