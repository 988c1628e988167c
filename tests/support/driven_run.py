"""Runs driven in this process, over a log in memory that can end at any event, as if the process
had died there. Models and sessions remember by request id and name, as the real services do.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import dataclasses
import hashlib
import io
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom.sandbox.v1 import execution_pb2 as ex

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
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.ports import (
    CellOrder,
    ModelCall,
    OpenSession,
    RestoreOrder,
    SessionOrder,
    StoredSession,
)
from orchestrator.runs.stop_wish import StopWish
from tests.support.fake_gateway import TOKEN_KEY, ScriptedError, generation
from tests.support.plain_engine import PlainSteps

TENANT = "default"
Result = ex.ExecutionResult
Reply = str | ScriptedError
_TICKS = itertools.count()
"""What `unsteady()` in a cell returns: never the same."""


def failure(code: grpc.StatusCode, reason: ErrorReason.ValueType, **metadata: str) -> ReceivedError:
    """Return an error as a call of another service raises it."""
    return ReceivedError(ScriptedError(code, reason, **metadata).to_status())


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

    async def past(self, run_id: str) -> AsyncIterator[RunEvent]:
        """Yield what is stored."""
        for event in list(self.events.get(run_id, ())):
            yield event


class LedgerModel:
    """Answers a request id once, and again for nothing; another prompt under it is a defect."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = replies
        self._answers: dict[str, tuple[bytes, str]] = {}
        self.paid: list[str] = []
        """Request ids of calls that cost something."""
        self.absences: list[ReceivedError] = []
        """Raised before a call, one after the other."""

    async def generate(self, call: ModelCall) -> Generation:
        """Answer with the reply of the call's turn."""
        for _ in range(10):  # what is done while the model thinks gets its time
            await asyncio.sleep(0)
        if self.absences:
            raise self.absences.pop(0)
        reply = self._replies[min(call.turn, len(self._replies)) - 1]
        if isinstance(reply, ScriptedError):
            raise ReceivedError(reply.to_status())
        text = "\0".join(message.text for message in call.messages)
        return self.answer(call.request_id, text, reply)

    def answer(self, request_id: str, prompt: str, reply: str) -> Generation:
        """Return a reply, paid where the request id is not known."""
        digest = hashlib.sha256(prompt.encode()).digest()
        known = self._answers.get(request_id)
        if known is None:
            self._answers[request_id] = digest, reply
            self.paid.append(request_id)
            return generation(reply)
        assert known[0] == digest, f"{request_id} was asked for something else"
        repeated = generation(known[1])
        repeated.recorded_usage.CopyFrom(repeated.usage)
        repeated.ClearField("usage")
        repeated.attempts = 0
        return repeated

    async def count_tokens(self, *_: object, **__: object) -> int:
        """Know no vocabulary."""
        return 0


@dataclasses.dataclass
class _Session:
    name: str
    run_id: str
    started_ns: int
    clock_ns: int
    seed: int
    namespace: dict[str, Any]
    executions: int = 0
    sub_calls: int = 0


class MemorySandbox:
    """Runs Python in sessions that repeat: `now()` and `rand()` depend on what has run, and
    `ask(prompt)` on the model's ledger. `lose_once()` takes the session with the cell."""

    def __init__(self, model: LedgerModel) -> None:
        self._model = model
        self.sessions: dict[str, _Session] = {}
        self.checkpoints: dict[str, _Session] = {}
        self.opened = 0
        self.natures: set[tuple[int, int]] = set()
        """Clock and seed of each session when it was opened."""
        self.executed: list[str] = []
        self.known_failures: list[list[int]] = []
        """Of each execution, the sub-calls that were not to be made again."""
        self.absences: list[ReceivedError] = []
        """Raised before an execution, one after the other."""
        self.stalls: list[ReceivedError] = []
        """Raised before sessions are listed, one after the other."""
        self.losses_by_code = 0
        """How often each piece of code loses its session once it has run."""
        self.forgets_checkpoints = False
        self.lost: collections.Counter[str] = collections.Counter()
        """How often code has lost its session, by code."""

    async def open_session(self, order: SessionOrder) -> str:
        """Open an empty session."""
        return self._new(order.run_id, order.clock_ns, order.seed, {}).name

    async def restore_session(self, order: RestoreOrder) -> OpenSession:
        """Open a copy of a checkpoint."""
        if self.forgets_checkpoints:
            reason = ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND
            raise failure(grpc.StatusCode.NOT_FOUND, reason)
        stored = self.checkpoints[order.checkpoint_key]
        session = self._new(
            order.run_id, stored.started_ns, stored.seed, copy.deepcopy(stored.namespace)
        )
        session.executions, session.sub_calls = stored.executions, stored.sub_calls
        session.clock_ns = stored.clock_ns
        return OpenSession(session.name, session.executions, True)

    async def sessions_of(self, run_id: str) -> Sequence[OpenSession]:
        """Return the sessions of a run."""
        if self.stalls:
            raise self.stalls.pop(0)
        return [
            OpenSession(each.name, each.executions, True)
            for each in self.sessions.values()
            if each.run_id == run_id
        ]

    async def checkpoint(self, session: str) -> StoredSession:
        """Keep a copy."""
        key = f"checkpoints/{len(self.checkpoints)}"
        self.checkpoints[key] = copy.deepcopy(self._find(session))
        return StoredSession(key, 1, self._find(session).executions)

    async def refresh_run_token(self, session: str, run_token: str) -> None:
        """Do nothing: tokens are not looked at."""

    async def interrupt(self, session: str) -> None:
        """Do nothing: code ends by itself."""

    async def delete_session(self, session: str) -> None:
        """Forget a session."""
        self.sessions.pop(session, None)

    async def execute(self, order: CellOrder) -> AsyncGenerator[ex.ExecutionEvent, None]:
        """Run code at once, then tell of it; who stops listening undoes it."""
        if self.absences:
            raise self.absences.pop(0)
        session = self._find(order.session)
        self.executed.append(order.code)
        self.known_failures.append(sorted(order.failed_sub_calls))
        before = copy.deepcopy(session.namespace), session.clock_ns
        execution = _Execution(self._model, session, order)
        events, result = execution.run()
        session.executions += 1
        try:
            yield ex.ExecutionEvent(start=ex.ExecutionStart(execution=session.executions))
            for event in events:
                await asyncio.sleep(0)
                yield event
        except GeneratorExit:
            session.namespace, session.clock_ns = before
            raise
        is_lost_once = execution.is_lost_once and not self.lost[order.code]
        if is_lost_once or self.lost[order.code] < self.losses_by_code:
            self.lost[order.code] += 1
            self.sessions.pop(session.name, None)
            raise failure(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_SESSION_LOST)
        if not result.state_kept:
            session.namespace, session.clock_ns = before
        yield ex.ExecutionEvent(result=result)

    def _new(self, run_id: str, clock_ns: int, seed: int, namespace: dict[str, Any]) -> _Session:
        self.opened += 1
        name = f"sessions/s{self.opened}"
        self.natures.add((clock_ns, seed))
        self.sessions[name] = _Session(name, run_id, clock_ns, clock_ns, seed, namespace)
        return self.sessions[name]

    def _find(self, name: str) -> _Session:
        if name not in self.sessions:
            reason = ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND
            raise failure(grpc.StatusCode.NOT_FOUND, reason)
        return self.sessions[name]


class _Execution:
    def __init__(self, model: LedgerModel, session: _Session, order: CellOrder) -> None:
        self._model = model
        self._session = session
        self._order = order
        self._reads = 0
        self._asked = 0
        self._events: list[ex.ExecutionEvent] = []
        self._result = Result(ending=Result.ENDING_COMPLETED, state_kept=True)
        self.is_lost_once = False

    def run(self) -> tuple[list[ex.ExecutionEvent], Result]:
        provided = {
            "now": self._now,
            "rand": self._rand,
            "ask": self._ask,
            "FINAL": self._final,
            "FINAL_VAR": lambda name: self._final(self._session.namespace[name]),
            "undo": self._undo,
            "lose_once": self._lose_once,
            "unsteady": lambda: next(_TICKS),
        }
        output = io.StringIO()
        names = {**self._session.namespace, **provided}
        self._session.clock_ns += len(self._order.code)
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(self._order.code, "<cell>", "exec"), names)
        except _UndoneError:
            self._result.ending, self._result.state_kept = Result.ENDING_OUT_OF_FUEL, False
        except Exception as error:
            self._result.ending = Result.ENDING_RAISED
            self._result.error.type = type(error).__name__
            self._result.error.message = str(error)
        hidden = {*provided, "__builtins__"}
        self._session.namespace = {k: v for k, v in names.items() if k not in hidden}
        for name, value in sorted(self._session.namespace.items()):
            self._result.variables.add(name=name, type=type(value).__name__)
        if output.getvalue():
            chunk = ex.OutputChunk(text=output.getvalue())
            self._events.append(ex.ExecutionEvent(output=chunk))
        return self._events, self._result

    def _now(self) -> int:
        return self._session.clock_ns - self._session.started_ns

    def _rand(self) -> str:
        self._reads += 1
        origin = f"{self._session.seed}/{self._order.random_stream}/{self._reads}"
        return hashlib.sha256(origin.encode()).hexdigest()[:8]

    def _ask(self, prompt: str) -> str:
        assert self._asked < self._order.sub_calls_max, "code asked more than it did at first"
        self._asked += 1
        self._session.sub_calls += 1
        number = self._session.sub_calls
        started = ex.SubCallStarted(sub_call=number, prompt_head=prompt)
        self._events.append(ex.ExecutionEvent(sub_call_started=started))
        event = ex.ExecutionEvent(sub_call_finished=ex.SubCallFinished(sub_call=number))
        self._events.append(event)
        finished = event.sub_call_finished
        known = self._order.failed_sub_calls.get(self._asked)
        if known is not None or prompt.startswith("fail"):
            reason = ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
            status = known or failure(grpc.StatusCode.UNAVAILABLE, reason).status
            finished.error.CopyFrom(status)
            raise RuntimeError(status.message)
        request_id = f"{self._order.call_prefix}/{self._asked}"
        finished.generation.CopyFrom(self._model.answer(request_id, prompt, prompt.upper()))
        return finished.generation.text

    def _final(self, value: object) -> None:
        self._result.final.text = str(value)

    def _undo(self) -> None:
        raise _UndoneError

    def _lose_once(self) -> None:
        self.is_lost_once = True


class _UndoneError(Exception):
    pass


class _Catalog:
    def __init__(self) -> None:
        self.absences: list[ReceivedError] = []

    async def facts(self, *_: object, **__: object) -> tuple[TierFacts, TierFacts]:
        if self.absences:
            raise self.absences.pop(0)
        return TierFacts(0, 0, 0), TierFacts(0, 0, 0)


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
