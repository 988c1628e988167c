"""Runs driven in this process, over a log in memory that can end at any event, as if the process
had died there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.config import Secret
from common.errors import ReceivedError
from common.run_token import RunTokenSigner
from orchestrator.blobs import FolderBlobStore
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.errors import RunCancelledError
from orchestrator.model_catalog import TierFacts
from orchestrator.profiles.profiles import Profiles
from orchestrator.runs.answers.answer_schema import AnswerSchemas
from orchestrator.runs.assembly import DriverSettings
from orchestrator.runs.driver import RunDriver
from orchestrator.runs.fork import Forks
from orchestrator.runs.log.record import RunRecord, ends_run
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.ports import SettledCalls
from orchestrator.runs.settlement import Settlement
from orchestrator.runs.stop_wish import StopWish
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.memory_neighbours import LedgerModel, MemorySandbox, Reply
from tests.support.plain_engine import PlainSteps

TENANT = "default"


class MemoryLog:
    """The events of runs. From a `cut` on nothing is stored: the process is as good as dead."""

    def __init__(self) -> None:
        self.events: dict[str, list[RunEvent]] = {}
        self.progress: dict[str, Run] = {}
        self.cut: int | None = None
        """Events after which nothing more is stored."""
        self.is_cut = asyncio.Event()

    def append(self, record: RunRecord, event: RunEvent, *, may_wait: bool = False) -> None:
        """Store an event at once."""
        del may_wait
        events = self.events.setdefault(record.run_id, [])
        if self.is_cut.is_set() or len(events) == self.cut:
            self.is_cut.set()
            return
        assert event.sequence == len(events) + 1
        stored = RunEvent()
        stored.CopyFrom(event)
        events.append(stored)
        progress = self.progress.setdefault(record.run_id, Run())
        progress.CopyFrom(record.progress)

    async def stored(self, run_id: str) -> None:
        """Return at once, or never."""
        del run_id
        if self.is_cut.is_set():
            await asyncio.get_running_loop().create_future()

    async def has_ended(self, run_id: str) -> bool:
        """True where the last event is stored."""
        return ends_run(self.events[run_id][-1])

    async def past(self, run_id: str) -> AsyncIterator[RunEvent]:
        """Yield what is stored."""
        for event in list(self.events.get(run_id, ())):
            yield event


class _Catalog:
    def __init__(self) -> None:
        self.absences: list[ReceivedError] = []

    async def facts(self, *_: object, **__: object) -> tuple[TierFacts, TierFacts]:
        if self.absences:
            raise self.absences.pop(0)
        return TierFacts(0, 0, 0), TierFacts(0, 0, 0)


class _Books:
    """A ledger that has nothing beyond what callers were told."""

    async def settle_calls(
        self, prefix: str, *, run_token: str, grace_s: float, timeout_s: float
    ) -> SettledCalls:
        return SettledCalls((), 0)


class _Contexts:
    async def get(self, tenant: str, context_id: str) -> StoredContext:
        del tenant
        return StoredContext(
            context_id=context_id,
            kind=ContextKind.TEXT,
            title="",
            size_bytes=1,
            blake3="",
            blob_key="contexts/a",
            shape=TextShape(1, 97, 1, 0),
            document_count=1,
            created_us=0,
        )

    async def documents(self, tenant: str, context_id: str) -> list[StoredDocument]:
        del tenant, context_id
        return []


class _NoRecall:
    async def origin(self, _tenant: str, run: Run) -> Run:
        return run

    async def before(self, *_: object) -> None:
        return None


class _NoChildren:
    async def lineage(self, record: RunRecord) -> None:
        del record

    async def unbooked(self, *_: object) -> list[object]:
        return []

    async def stop_below(self, run_id: str) -> None:
        del run_id


class _Stored:
    """A run and its events, as the store has them."""

    def __init__(self, log: MemoryLog, record: RunRecord) -> None:
        self._log = log
        self._record = record

    async def get(self, tenant: str, run_id: str) -> RunRecord:
        del tenant, run_id
        return self._record

    async def events(self, run_id: str, *, after: int, count: int) -> list[RunEvent]:
        found = self._log.events[run_id][after : after + count]
        return [RunEvent.FromString(event.SerializeToString()) for event in found]


class Bench:
    """What runs of a script are driven with; it outlives the processes that drive them."""

    def __init__(
        self, folder: Path, replies: Sequence[Reply], *, checkpoint_after_s: float = 1e9
    ) -> None:
        self.log = MemoryLog()
        self.model = LedgerModel(replies)
        self.sandbox = MemorySandbox(self.model)
        self.catalog = _Catalog()
        self.children: Any = _NoChildren()
        self.recall: Any = _NoRecall()
        self.blobs = FolderBlobStore(folder)
        self._settings = DriverSettings(
            cell_time_max_s=10,
            output_characters_max=2_000,
            last_answer_tokens=1_000,
            last_request_bytes=4_000,
            checkpoint_after_s=checkpoint_after_s,
        )

    def new_run(self, **limits: int) -> RunRecord:
        """Return a queued run whose first event is stored."""
        spec = RunSpec(
            question="What is it?", context="contexts/a", root_tier="root", sub_tier="sub"
        )
        spec.limits.turns_max = limits.pop("turns_max", 10)
        spec.limits.sub_calls_max = limits.pop("sub_calls_max", 100)
        spec.limits.tokens_max = limits.pop("tokens_max", 10_000_000)
        spec.limits.cost_usd_nanos_max = 10**12
        spec.limits.time_max.FromSeconds(limits.pop("time_max_s", 600))
        record = RunRecord.queued(spec)
        # What is random in a run depends on its name.
        record.head.name = record.head.root = "runs/0a"
        self.log.append(record, record.state_event())
        return record

    async def fork(
        self, record: RunRecord, *, after_turn: int, question: str, confidence_min: float = 0
    ) -> RunRecord:
        """Return a fork of a run, queued, its first events stored."""
        forks = Forks(cast("Any", _Stored(self.log, record)))
        changes = RunSpec(question=question, confidence_min=confidence_min)
        spec = await forks.spec(TENANT, record.run_id, changes)
        taken = await forks.taken_over(TENANT, record.run_id, after_turn=after_turn)
        fork = RunRecord.queued(spec)
        fork.head.name = fork.head.root = "runs/0b"
        first = taken.begin(fork)
        self.log.events[fork.run_id] = [first, *taken.events]
        return fork

    async def drive(
        self, record: RunRecord, *, cut: int | None = None, is_cancelled: bool = False
    ) -> bool:
        """Drive a run to its end, or until so many events are stored; return whether it ended."""
        self.log.cut, self.log.is_cut = cut, asyncio.Event()
        stop = StopWish()
        if is_cancelled:
            stop.wish(RunCancelledError)
        driver = RunDriver(
            model=self.model,
            sandbox=self.sandbox,
            catalog=cast("Any", self.catalog),
            contexts=cast("Any", _Contexts()),
            blobs=self.blobs,
            log=cast("Any", self.log),
            signer=RunTokenSigner(Secret(TOKEN_KEY)),
            prompts=PromptBook.packaged(),
            meters=RunMeters(),
            schemas=AnswerSchemas(),
            profiles=Profiles(self.blobs),
            children=self.children,
            recall=self.recall,
            settlement=Settlement(books=_Books(), signer=RunTokenSigner(Secret(TOKEN_KEY))),
            checkpoint_books=self.sandbox,
            settings=self._settings,
        )
        driving = asyncio.create_task(driver.drive(TENANT, record, stop, PlainSteps()))
        died = asyncio.create_task(self.log.is_cut.wait())
        await asyncio.wait({driving, died}, return_when=asyncio.FIRST_COMPLETED)
        has_ended = driving.done() and not self.log.is_cut.is_set()
        died.cancel()
        if not driving.done():
            stop.leave()
        await driving
        return has_ended

    def again(self, record: RunRecord) -> RunRecord:
        """Return a run as the next process finds it stored."""
        progress = Run()
        progress.CopyFrom(self.log.progress[record.run_id])
        return RunRecord(record.head, progress)

    def events(self, record: RunRecord) -> list[RunEvent]:
        """Return the events that are stored."""
        return self.log.events[record.run_id]


async def undisturbed(folder: Path, replies: Sequence[Reply]) -> tuple[Bench, RunRecord]:
    """Drive a new run of a script to its end."""
    bench = Bench(folder, replies)
    record = bench.new_run()
    assert await bench.drive(record)
    return bench, record


def told(events: Sequence[RunEvent], run_id: str) -> list[str]:
    """Return what events say, without what differs from one driving to the next: times and names
    of sessions."""
    lines = []
    for event in events:
        plain = RunEvent()
        plain.CopyFrom(event)
        plain.ClearField("event_time")
        case = plain.WhichOneof("event")
        if case == "run_changed":
            run = plain.run_changed
            for field in ("create_time", "start_time", "end_time"):
                run.ClearField(field)
        elif case in {"model_replied", "sub_call_finished", "model_call_failed"}:
            getattr(plain, str(case)).ClearField("elapsed")
        elif case in {"cell_finished", "value_read"}:
            record_of = getattr(plain, str(case)).record
            for field in ("session", "session_execution", "clock_time", "seed", "output_digest"):
                record_of.ClearField(field)
        elif case == "checkpoint_stored":
            plain.checkpoint_stored.ClearField("key")
            plain.checkpoint_stored.ClearField("session_executions")
        lines.append(str(plain).replace(run_id, "RUN"))
    return lines
