"""Large results of cells: stored and read again, also while the object store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.orchestrator.v1.run_event_pb2 import CellFinished
from fathom.sandbox.v1.execution_pb2 import FinalValue

from common.errors import NotFoundError
from orchestrator.blobs import FolderBlobStore
from orchestrator.errors import ObjectStoreError
from orchestrator.runs import patient_blobs
from orchestrator.runs.patient_blobs import PatientBlobs
from orchestrator.runs.sessions.kept_results import KeptResults

LARGE = FinalValue(text="x" * 100_000)


class Blobs(FolderBlobStore):
    """A store that is away for a while."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.failures = 0

    async def put(self, key: str, data: bytes) -> None:
        self._fail()
        await super().put(key, data)

    async def read(self, key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        self._fail()
        async for piece in super().read(key, offset=offset, size=size):
            yield piece

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ObjectStoreError("it is away")


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    monkeypatch.setattr(patient_blobs, "_PAUSE_S", 0.0)
    return Blobs(tmp_path)


def results(blobs: Blobs, *, is_work_over: bool = False) -> KeptResults:
    left_s = 0.0 if is_work_over else 60.0
    return KeptResults(PatientBlobs(blobs, lambda: left_s), run_id="0a")


async def test_a_store_that_is_away_is_waited_for_on_both_ways(blobs: Blobs) -> None:
    """The cell is paid for; nothing of the run is worth ending for a moment's absence."""
    kept, told = results(blobs), CellFinished()
    blobs.failures = 2
    await kept.keep_final(told, LARGE, (1, 1))
    blobs.failures = 2

    assert await kept.final(told) == LARGE
    assert blobs.failures == 0


async def test_a_store_that_stays_away_is_told_once_the_time_is_over(blobs: Blobs) -> None:
    told = CellFinished()
    await results(blobs).keep_final(told, LARGE, (1, 1))
    blobs.failures = 1

    with pytest.raises(ObjectStoreError):
        await results(blobs, is_work_over=True).final(told)


async def test_a_value_that_is_gone_is_told_by_its_name(blobs: Blobs) -> None:
    """A fork reads what its original has stored, which goes with that one."""
    told = CellFinished()
    await results(blobs).keep_final(told, LARGE, (2, 1))
    await blobs.delete(told.final_key)

    async with asyncio.timeout(60):
        with pytest.raises(NotFoundError, match=r"outputs/0a/2-1\.final"):
            await results(blobs).final(told)
