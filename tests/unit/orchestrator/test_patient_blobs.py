"""The object store as one run uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.blobs import FolderBlobStore
from orchestrator.errors import ObjectStoreError
from orchestrator.runs import patient_blobs
from orchestrator.runs.patient_blobs import PatientBlobs

DATA = bytes(range(200))
PIECE = 64


class BreakingBlobs(FolderBlobStore):
    """A store that goes away after each piece, and does not answer the call after that."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls = 0

    async def put(self, key: str, data: bytes) -> None:
        self._come_and_go()
        await super().put(key, data)

    async def read(self, key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        self._come_and_go()
        async for data in super().read(key, offset=offset, size=min(size, PIECE)):
            yield data
        if size > PIECE:
            raise ObjectStoreError("it has gone away")

    def _come_and_go(self) -> None:
        self.calls += 1
        if self.calls % 2:
            raise ObjectStoreError("it is away")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_blobs, "_PAUSE_S", 0.001)


async def test_a_read_goes_on_behind_the_last_piece_that_came(tmp_path: Path) -> None:
    """Pieces that came twice, or not at all, would be another text."""
    blobs = PatientBlobs(BreakingBlobs(tmp_path), lambda: 60.0)
    await blobs.put("k", DATA)

    assert b"".join([piece async for piece in blobs.read("k", offset=10, size=180)]) == DATA[10:190]


async def test_time_that_was_waited_is_told(tmp_path: Path) -> None:
    """Who bounds its own work does not count it."""
    blobs = PatientBlobs(BreakingBlobs(tmp_path), lambda: 60.0)

    await blobs.put("k", DATA)

    assert blobs.waited_s > 0


async def test_no_pause_is_longer_than_what_the_run_has_left(tmp_path: Path) -> None:
    """Where the time is over, the error is what the run ends with."""
    store = BreakingBlobs(tmp_path)
    blobs = PatientBlobs(store, lambda: 0.0)

    with pytest.raises(ObjectStoreError):
        await blobs.put("k", DATA)

    assert store.calls == 1


async def test_pauses_grow_to_their_longest_and_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand runs that notice at once must not come back at once, again and again."""
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    monkeypatch.setattr(patient_blobs, "_PAUSE_S", 0.25)
    monkeypatch.setattr("orchestrator.runs.patient_blobs.asyncio.sleep", sleep)
    blobs = PatientBlobs(FolderBlobStore(tmp_path), lambda: 0.0 if len(slept) == 40 else 60.0)

    async def ask() -> None:
        raise ObjectStoreError("it is away")

    with pytest.raises(ObjectStoreError):
        await blobs.outlast(ask)

    assert 0.125 <= slept[0] <= 0.25
    assert all(2.5 <= pause_s <= 5.0 for pause_s in slept[6:])
    assert len(set(slept)) == len(slept)
