"""Child runs: started for the code of their parents, followed to their ends, stopped with them.

A call that starts a child is known by its request id, so that code that runs again finds the
child that is there. Who may start one is told by a run token, never by the request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator
from typing import Protocol

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec
from sqlalchemy.exc import IntegrityError

from common.errors import InvalidFieldError, NotFoundError, PermissionDeniedError
from common.run_token import RunToken
from orchestrator.errors import ChildRunRefusedError
from orchestrator.runs.amounts import add_usage
from orchestrator.runs.children import carving
from orchestrator.runs.children.carving import Left, Part
from orchestrator.runs.children.given import Given
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.children.store import ChildStore, NewChild, is_repeat
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.spec import QUESTION_BYTES_MAX

SIBLINGS_MAX = 100_000
_REQUEST_ID = re.compile(r"[0-9a-z-]{1,64}/[0-9]{1,9}/[0-9]{1,9}/c[0-9]{1,9}")
_LOOK_S = (0.5, 4.0)
"""How often a child that waits for a place looks by itself, at first and in the end: the one that
it waits for may be driven elsewhere."""
_TOLD_S = 1.0
"""How often the spend of a child is told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChildOrder:
    """What code asks for."""

    request_id: str
    """`{run}/{turn}/{cell}/c{position}` of the call."""
    question: str
    """What the child is to answer."""
    given: Given | None
    """What it is to work on; None for its parent's whole context."""
    limits: Limits
    """What is asked for; what is unset is decided here."""
    root_tier: str = ""
    """Of its root model; empty for its parent's."""
    sub_tier: str = ""
    """What its code asks; empty for its parent's."""
    answer_schema_json: str = ""
    """JSON Schema of its answer; empty for none."""
    siblings: int = 1
    """Calls of its batch that have not been begun, this one included."""
    sub_calls_left: int | None = None
    """Sub-calls that its parent's session may still make; None where that is not known."""


class Queue(Protocol):
    """Where runs wait to be driven."""

    def wake(self) -> None:
        """Look for runs to take up."""

    async def cancel_below(self, run_id: str) -> None:
        """Ask all below a run to stop, wherever they are driven."""


class Log(Protocol):
    """Where events are followed."""

    def follow(self, run_id: str, *, after: int) -> AsyncIterator[RunEvent]:
        """Yield the events after a sequence, to the run's last one."""


class ContextMaker(Protocol):
    """Makes the contexts of children."""

    async def make(self, tenant: str, parent: str, given: Given | None) -> str:
        """Return `contexts/{context}` for a child."""


class Schemas(Protocol):
    """Knows what a schema of an answer may be."""

    async def check_schema(self, schema_json: str) -> None:
        """Raise InvalidFieldError for what is none."""


class ChildRuns:
    """The child runs of every tenant."""

    def __init__(
        self,
        store: ChildStore,
        runs: RunStore,
        contexts: ContextMaker,
        log: Log,
        schemas: Schemas,
    ) -> None:
        self._store = store
        self._runs = runs
        self._contexts = contexts
        self._log = log
        self._schemas = schemas
        self._queue: Queue | None = None
        self._freed: dict[str, asyncio.Event] = {}

    def attach(self, queue: Queue) -> None:
        """Take the queue, whose runs need this as well."""
        self._queue = queue

    async def run(self, token: RunToken, order: ChildOrder) -> AsyncIterator[Run]:
        """Yield a child as it begins, whenever its spend has changed, and at its end.

        Raises InvalidFieldError, NotFoundError, PermissionDeniedError for a tier that the token
        does not permit, ChildRunRefusedError, NothingLeftError, and DrainingError.
        """
        _check(order)
        try:
            known = await self._store.find(token.tenant, order.request_id)
            if known is None:
                run_id = await self._start(token, order)
            elif f"runs/{known.root_id}" != token.run:
                raise NotFoundError(order.request_id)
            else:
                run_id = known.run_id
            async for run in self._follow(token.tenant, run_id):
                yield run
        finally:
            self._free(token)

    async def shown(self, record: RunRecord) -> Run:
        """Return a run with its children counted, and with what they have spent so far."""
        run = record.whole()
        counts = await self._store.counts(record.run_id)
        run.children, run.children_live = counts.all, counts.live
        if record.progress.state not in TERMINAL_STATES and counts.all:
            usage, sub_calls = await self._store.spent_below(record.run_id)
            add_usage(run.usage, usage)
            run.sub_calls += sub_calls
        return run

    async def lineage(self, record: RunRecord) -> Lineage | None:
        """Return what is above a run; None for a run that has no parent."""
        return await self._store.lineage(record.run_id) if record.head.parent else None

    async def close(self, run_id: str) -> None:
        """Have a run take no further child: it is about to end."""
        await self._store.close(run_id)

    async def unbooked(self, tenant: str, run_id: str) -> list[tuple[str, RunRecord]]:
        """Return the children of a run whose end it has not told, with the request ids of the
        calls that started them."""
        return await self._store.unbooked(tenant, run_id)

    async def stop_below(self, run_id: str) -> None:
        """Ask all runs below a run to stop."""
        await self._queued.cancel_below(run_id)

    async def _start(self, token: RunToken, order: ChildOrder) -> str:
        """Store a child and have it driven; return its id. Waits for a place among the live."""
        lineage = Lineage.of_token(token)
        parent_id = lineage.parent.removeprefix("runs/")
        if not order.request_id.startswith(f"{parent_id}/"):
            raise InvalidFieldError("request_id", f"must begin with {parent_id}/ and name the call")
        parent = await self._runs.get(token.tenant, parent_id)
        if parent.progress.state != Run.STATE_RUNNING:
            raise ChildRunRefusedError(parent.head.name, "the run has ended, or has not begun")
        carving.check_may_have_children(parent.head.name, parent.head.spec.limits)
        spec = _spec(token, order, parent.head.spec)
        if spec.answer_schema_json:
            await self._schemas.check_schema(spec.answer_schema_json)
        spec.context = await self._contexts.make(
            token.tenant, parent.head.spec.context, order.given
        )
        child = NewChild(
            request_id=order.request_id,
            lineage=lineage,
            sub_calls_left=_or_all(order.sub_calls_left, parent.head.spec.limits.sub_calls_max),
            part=lambda limits, left: _part(order, limits, left),
            record=lambda limits: _record(spec, limits, parent, lineage),
        )
        # A caller that hangs up meanwhile leaves no child that nobody knows of: storing one is one
        # transaction, and what waits in the queue is found there.
        look_s, longest_s = _LOOK_S
        while True:
            freed = self._freed.setdefault(parent_id, asyncio.Event())
            try:
                adding = asyncio.ensure_future(self._store.add(token.tenant, child))
                adding.add_done_callback(_see)
                record = await asyncio.shield(adding)
            except IntegrityError as error:
                known = await self._store.find(token.tenant, order.request_id)
                if known is None or not is_repeat(error):
                    raise
                return known.run_id
            if record is not None:
                self._queued.wake()
                return record.run_id
            await _wait(freed, look_s)
            look_s = min(2 * look_s, longest_s)

    @property
    def _queued(self) -> Queue:
        assert self._queue is not None, "attach comes before any run"
        return self._queue

    async def _follow(self, tenant: str, run_id: str) -> AsyncIterator[Run]:
        record = await self._runs.get(tenant, run_id)
        yield record.whole()
        if record.progress.state in TERMINAL_STATES:
            return
        heard = asyncio.Event()
        ended = asyncio.create_task(self._ended(run_id, record.progress.last_sequence, heard))
        try:
            told = record.progress.usage.SerializeToString()
            while not (await asyncio.wait({ended}, timeout=_TOLD_S))[0]:
                if not heard.is_set():
                    continue  # nothing has changed: to wait costs no look at the database
                heard.clear()
                record = await self._runs.get(tenant, run_id)
                if record.progress.usage.SerializeToString() != told:
                    told = record.progress.usage.SerializeToString()
                    yield record.whole()
            ended.result()
        finally:
            ended.cancel()
        yield (await self._runs.get(tenant, run_id)).whole()

    async def _ended(self, run_id: str, after: int, heard: asyncio.Event) -> None:
        """Return once a run has ended; set `heard` with each event before that."""
        async for _ in self._log.follow(run_id, after=after):
            heard.set()

    def _free(self, token: RunToken) -> None:
        """Let children wait no longer that waited for one of their parent's to end."""
        freed = self._freed.pop(Lineage.of_token(token).parent.removeprefix("runs/"), None)
        if freed is not None:
            freed.set()


def _check(order: ChildOrder) -> None:
    if not _REQUEST_ID.fullmatch(order.request_id):
        raise InvalidFieldError("request_id", "must be {run}/{turn}/{cell}/c{position}")
    size = len(order.question.encode())
    if not order.question.strip() or size > QUESTION_BYTES_MAX:
        raise InvalidFieldError(
            "question", f"has {size} bytes; 1 to {QUESTION_BYTES_MAX} are allowed"
        )
    if not 1 <= order.siblings <= SIBLINGS_MAX:
        raise InvalidFieldError("siblings", f"must be 1 to {SIBLINGS_MAX}")
    if order.sub_calls_left is not None and order.sub_calls_left < 0:
        raise InvalidFieldError("sub_calls_left", "must be at least 0")
    carving.check_asked(order.limits)


def _spec(token: RunToken, order: ChildOrder, parent: RunSpec) -> RunSpec:
    spec = RunSpec(
        question=order.question,
        root_tier=order.root_tier or parent.root_tier,
        sub_tier=order.sub_tier or parent.sub_tier,
        answer_schema_json=order.answer_schema_json,
        priority=parent.priority,
        profile=parent.profile,
        direct_tokens_max=parent.direct_tokens_max,
    )
    for tier in (spec.root_tier, spec.sub_tier):
        if tier not in token.tiers:
            raise PermissionDeniedError(f"tier:{tier}", f"the run may not ask {tier[:128]!r}")
    spec.labels.update(parent.labels)
    return spec


def _part(order: ChildOrder, parent: Limits, left: Left) -> Part | None:
    return carving.part_for_child(order.limits, parent=parent, left=left, siblings=order.siblings)


def _record(spec: RunSpec, limits: Limits, parent: RunRecord, lineage: Lineage) -> RunRecord:
    complete = RunSpec()
    complete.CopyFrom(spec)
    complete.limits.CopyFrom(limits)
    record = RunRecord.queued(complete)
    record.head.profile_version = parent.head.profile_version
    record.head.parent = parent.head.name
    record.head.root = lineage.root
    record.head.depth = parent.head.depth + 1
    return record


def _or_all(left: int | None, whole: int) -> int:
    return whole if left is None else left


def _see(adding: asyncio.Future[RunRecord | None]) -> None:
    """Look at how it ended, in case the caller has gone: there is nothing to do about it."""
    if not adding.cancelled():
        adding.exception()


async def _wait(freed: asyncio.Event, look_s: float) -> None:
    try:
        async with asyncio.timeout(look_s):
            await freed.wait()
    except TimeoutError:
        return
