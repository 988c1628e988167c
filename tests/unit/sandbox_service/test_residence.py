"""Where a session is, against workers that only listen: what it is told, and when it is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from sandbox_service import frames
from sandbox_service.context_mounts import ContextBlob
from sandbox_service.errors import CapacityError
from sandbox_service.guest_memory import WASM_PAGE_BYTES
from sandbox_service.layer_store import LayerStore
from sandbox_service.layers import LARGE_BYTES, LAYERS_MAX
from sandbox_service.limits import Limits
from sandbox_service.objects import FolderObjects
from sandbox_service.residence import Residence
from sandbox_service.session_memory import SessionMemory
from sandbox_service.session_opener import OpenedSession
from sandbox_service.session_options import SessionOptions, SessionUse
from sandbox_service.worker_session import WorkerLostError, WorkerSession

OPTIONS = SessionOptions(limits=Limits(), contexts=[], idle_ttl_s=60.0, labels={})
USE = SessionUse(executions=1)


class Workers:
    """Opens sessions in workers that are not there."""

    def __init__(self, store: LayerStore) -> None:
        self.store = store
        self.sent: list[frames.ToWorker] = []
        self.opened: list[WorkerSession] = []
        self.is_full = False

    async def open(self, options: SessionOptions, memory: SessionMemory) -> OpenedSession:
        return self._opened(options, memory, is_restored=False)

    async def reopen(
        self, options: SessionOptions, use: SessionUse, memory: SessionMemory
    ) -> OpenedSession:
        assert use == USE
        return self._opened(options, memory, is_restored=True)

    async def send(self, frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
        self.sent.append(frame)

    def _opened(
        self, options: SessionOptions, memory: SessionMemory, *, is_restored: bool
    ) -> OpenedSession:
        if self.is_full:
            raise CapacityError("full")
        number = len(self.opened) + 1
        worker = WorkerSession(
            number, options.limits, self.send, lambda _: None, is_restored=is_restored
        )
        worker.receive(frames.Opened(session=number, memory_bytes=1))
        if not is_restored:
            worker.receive(frames.Saved(session=number, execution=0))
        self.opened.append(worker)
        return OpenedSession(worker=worker, memory_bytes=1, contexts=[])


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(LayerStore(FolderObjects(tmp_path)))


@pytest.fixture
async def home(workers: Workers) -> Residence:
    """A session in a worker."""
    residence = Residence(OPTIONS, SessionMemory.new(), workers)
    await residence.begin()
    return residence


def write(residence: Residence, size_bytes: int = 1) -> None:
    """Do what a worker does with what a cell has changed."""
    top = residence.memory.fds[-1]
    os.ftruncate(top, -(-size_bytes // WASM_PAGE_BYTES) * WASM_PAGE_BYTES)
    os.pwrite(top, b"x" * size_bytes, 0)


async def test_a_session_stays_in_its_worker(home: Residence, workers: Workers) -> None:
    assert await home.arrive(USE) is await home.arrive(USE) is workers.opened[0]
    assert workers.sent == []
    await home.close()


async def test_a_copy_finishes_the_layer_and_the_worker_is_told(
    home: Residence, workers: Workers
) -> None:
    write(home)

    copies = [await home.copied_memory() for _ in range(2)]

    assert workers.sent == [frames.Relayer(session=1, layers=1)]
    for each in copies:
        await each.close(workers.store)
    await home.close()


async def test_a_worker_is_told_also_where_layers_cannot_be_merged(
    home: Residence, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not go on writing to what is finished, whatever else fails."""

    def refuse(_: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr("sandbox_service.layers.merged", refuse)
    for count in range(1, LAYERS_MAX + 3):
        write(home)
        await (await home.copied_memory()).close(workers.store)
        assert workers.sent[-1] == frames.Relayer(session=1, layers=count)
    monkeypatch.undo()

    write(home)
    await (await home.copied_memory()).close(workers.store)

    assert workers.sent[-1] == frames.Relayer(session=1, layers=1)
    await home.close()


async def test_contexts_are_finished_before_the_first_cell(
    home: Residence, workers: Workers
) -> None:
    """So that no checkpoint of it stores them again."""
    write(home, LARGE_BYTES)

    await home.arrive(SessionUse())

    assert workers.sent == [frames.Relayer(session=1, layers=1)]
    await home.close()


async def test_little_is_not_finished_before_there_is_a_need(
    home: Residence, workers: Workers
) -> None:
    write(home, LARGE_BYTES - WASM_PAGE_BYTES)

    await home.arrive(SessionUse())

    assert workers.sent == []
    await home.close()


async def test_a_dead_worker_is_left_for_another(home: Residence, workers: Workers) -> None:
    write(home)
    workers.opened[0].lose("dead")
    assert (home.is_in_worker, home.loss) == (False, "")

    worker = await home.arrive(USE)

    assert worker is workers.opened[1]
    assert len(home.memory.fds) == 2
    await home.close()


async def test_a_session_that_no_worker_can_take_waits_for_the_next_call(
    home: Residence, workers: Workers
) -> None:
    workers.opened[0].lose("dead")
    workers.is_full = True
    with pytest.raises(CapacityError):
        await home.arrive(USE)
    workers.is_full = False

    assert await home.arrive(USE) is workers.opened[1]
    await home.close()


async def test_a_torn_session_is_lost(home: Residence, workers: Workers) -> None:
    worker = workers.opened[0]
    worker.is_saved = False
    worker.lose("dead")

    assert home.loss == "dead"
    with pytest.raises(WorkerLostError, match="dead"):
        await home.arrive(USE)
    with pytest.raises(WorkerLostError, match="dead"):
        await home.copied_memory()
    await home.close()


async def test_a_copy_waits_until_the_session_is_saved(home: Residence, workers: Workers) -> None:
    worker = workers.opened[0]
    await worker.run(1, "x", report_variables=False)
    worker.receive(ended())
    copying = asyncio.create_task(home.copied_memory())
    await asyncio.sleep(0)
    assert not copying.done()

    worker.receive(frames.Saved(session=1, execution=1))

    await (await copying).close(workers.store)
    await home.close()


async def test_a_session_that_is_ended_takes_no_worker(home: Residence, workers: Workers) -> None:
    await home.close()

    with pytest.raises(WorkerLostError, match="deleted"):
        await home.arrive(USE)
    assert len(workers.opened) == 1


def ended() -> frames.Ended:
    return frames.Ended(
        session=1,
        execution=1,
        ending="completed",
        state_kept=True,
        failure=None,
        final=None,
        variables=[],
        output_bytes=0,
        output_bytes_dropped=0,
        own_time_s=0.0,
        wait_time_s=0.0,
        fuel_used=0,
        memory_bytes=0,
    )


async def test_a_session_that_was_closed_keeps_no_description_of_its_contexts(
    workers: Workers,
) -> None:
    """A call's request id remembers its session for minutes."""
    mount = frames.Mount(variable="context", kind="text", texts=[])
    blob = ContextBlob(mount=mount, key="contexts/1", size_bytes=1)
    options = dataclasses.replace(OPTIONS, contexts=[blob])
    residence = Residence(options, SessionMemory.new(), workers)

    await residence.close()

    assert residence.options == OPTIONS
