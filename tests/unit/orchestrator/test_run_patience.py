"""A run waits for neighbours that are away, too slow or full, as long as it has time."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.orchestrator.v1.run_pb2 import Run

from common.database import DatabaseAwayError
from orchestrator.errors import ObjectStoreError
from orchestrator.runs import patient_blobs
from orchestrator.runs.ports import ModelCall
from tests.support.driven_run import Bench
from tests.support.memory_neighbours import failure
from tests.support.run_scripts import cells


async def test_a_run_waits_for_a_sandbox_that_is_away(tmp_path: Path) -> None:
    """A restart takes seconds, in which no run that has time may fail."""
    bench = Bench(tmp_path, [cells("a = 1"), cells("FINAL(a)")])
    record = bench.new_run()
    away = failure(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE)
    bench.sandbox.absences = [away] * 5

    assert await bench.drive(record)

    assert record.progress.answer.text == "1"


async def test_a_cells_result_waits_for_an_object_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cell printed and its value were paid for, and a restart of the store takes seconds."""
    monkeypatch.setattr(patient_blobs, "_PAUSE_S", 0.0)
    bench = Bench(tmp_path, [cells("print('x' * 5_000)"), cells("FINAL('y' * 100_000)")])
    put, absences = bench.blobs.put, [ObjectStoreError("no space left")] * 3

    async def away(key: str, data: bytes) -> None:
        if absences:
            raise absences.pop()
        await put(key, data)

    monkeypatch.setattr(bench.blobs, "put", away)
    record = bench.new_run()

    assert await bench.drive(record)

    assert record.progress.state == Run.STATE_ANSWERED
    assert not absences
    assert len(bench.sandbox.executed) == 2


async def test_a_run_waits_for_services_that_are_too_slow_to_answer(tmp_path: Path) -> None:
    """An overloaded service is no reason to fail: its calls run into their own short deadlines."""
    bench = Bench(tmp_path, [cells("a = 1"), cells("FINAL(a)")])
    record = bench.new_run()
    assert not await bench.drive(record, cut=6)
    slow = failure(grpc.StatusCode.DEADLINE_EXCEEDED, ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE)
    bench.sandbox.stalls, bench.catalog.absences = [slow], [slow]
    record = bench.again(record)

    assert await bench.drive(record)

    assert record.progress.answer.text == "1"


async def test_a_run_whose_steps_cannot_be_stored_is_let_go_of_with_its_session(
    tmp_path: Path,
) -> None:
    """It is driven again from its log after a rest: nothing failed but the database."""
    bench = Bench(tmp_path, [cells("a = 1"), cells("FINAL(a)")])
    record, plain, absences = bench.new_run(), bench.model.generate, [DatabaseAwayError()]

    async def generate(call: ModelCall) -> Generation:
        if call.turn == 2 and absences:
            raise absences.pop()
        return await plain(call)

    bench.model.generate = generate  # type: ignore[method-assign]

    with pytest.raises(DatabaseAwayError):
        await bench.drive(record)
    assert len(bench.sandbox.sessions) == 1
    record = bench.again(record)
    assert await bench.drive(record)

    assert record.progress.answer.text == "1"
    assert bench.sandbox.opened == 1
