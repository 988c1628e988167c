"""Drives one run from the queue to a terminal state, whatever happens on the way.

A run that was driven before goes on from what its log has. What can go wrong ends here: an answer,
a limit, a failure of another service, a cancellation and the unforeseen each become the run's
outcome, stored with its last event.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time

import grpc
from fathom.gateway.v1.generation_pb2 import Message, Usage
from fathom.orchestrator.v1.run_pb2 import Answer, Run
from opentelemetry.trace import Span, Status, StatusCode

from common import telemetry_names as names
from common.database import DatabaseAwayError
from common.errors import ReceivedError, ServiceError
from common.telemetry import tracer
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.conversations.recall import Earlier, Recall
from orchestrator.errors import RunCancelledError
from orchestrator.model_catalog import ModelCatalog, TierFacts
from orchestrator.profiles.words import question_words
from orchestrator.runs.assembly import AssembledRun, LiveRun, RunTools, assemble
from orchestrator.runs.children.told import end_children
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.recorded import RecordedEvents, turn_started
from orchestrator.runs.log.steps import Steps, StepsLostError
from orchestrator.runs.meters import status_word
from orchestrator.runs.model.direct import direct_demands, direct_messages, goes_direct
from orchestrator.runs.patient_blobs import PatientBlobs
from orchestrator.runs.sessions.beginning import Mounted
from orchestrator.runs.settlement import Settlement
from orchestrator.runs.spec import limits_of
from orchestrator.runs.stop_wish import StopWish

_log = logging.getLogger(__name__)
_GATEWAY_RETRY_S = 0.5
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDriver(RunTools):
    """What every run is driven with."""

    catalog: ModelCatalog
    """What models there are."""
    contexts: ContextStore
    """What runs read."""
    log: EventLog
    """Where steps are written down."""
    recall: Recall
    """What runs of conversations go on from."""
    settlement: Settlement
    """Completes what runs took."""

    async def drive(self, tenant: str, record: RunRecord, stop: StopWish, steps: Steps) -> None:
        """Bring a run to its end and store that, from its beginning or from where its log ends.
        Never raises, but what the event log raises; a wish to stop ends the run and not this call.

        Where this process lets go of the run, or is cancelled, nothing is stored: the run goes on
        elsewhere.
        """
        recorded = RecordedEvents(record.head.spec)
        async for event in self.log.past(record.run_id):
            recorded.take(event)
        journal = RunJournal(record, self.log, recorded, steps)
        with self.meters.driving(queued_s=_queued_s(record)):
            await self._drive(tenant, record, journal, stop)

    async def _drive(
        self, tenant: str, record: RunRecord, journal: RunJournal, stop: StopWish
    ) -> None:
        run, started_s = journal.run, time.monotonic()
        is_resumed = run.state == Run.STATE_RUNNING
        if not is_resumed and not stop.is_wished:
            run.state = Run.STATE_RUNNING
            run.start_time.GetCurrentTime()
            journal.add_state()
        lineage = await self.children.lineage(record)
        live = LiveRun(tenant, record, journal, is_resumed, lineage)
        async with contextlib.AsyncExitStack() as closing:
            closing.push_async_callback(self._delete_sessions, live, stop)
            span = closing.enter_context(_span_of(record))
            outcome = await self._outcome(live, stop, closing)
            over_s = time.monotonic()
            if outcome is not None:
                await end_children(tenant, record, journal, self.children, stop)
                # The log of a run that was driven before may lack its first turn: its call is made
                # while that is being stored.
                if is_resumed or _may_have_cut(outcome, journal):
                    waited_s = time.monotonic() - over_s
                    await self.settlement.complete(
                        tenant, record, journal, lineage, waited_s=waited_s
                    )
                _end_span(span, outcome, journal.run.usage)
            if outcome is None or stop.is_left:
                return
            # With its event: a terminal state that is stored before that would be a run without an
            # end, which nobody drives on.
            run.MergeFrom(outcome)
            run.sub_calls_live = 0
            run.end_time.GetCurrentTime()
            journal.add_state()
            self.meters.ended(run, duration_s=time.monotonic() - started_s)
            _log_end(record)

    async def _outcome(
        self, live: LiveRun, stop: StopWish, closing: contextlib.AsyncExitStack
    ) -> Run | None:
        """Do the work and return what came of it: a terminal state, and an answer or an error.
        None where this process lets go of the run."""
        work = asyncio.create_task(self._answer(live, stop, closing))
        stop.stops(work)
        try:
            await asyncio.wait({work})
        finally:
            work.cancel()
        failure = None if work.cancelled() else work.exception()
        if isinstance(failure, DatabaseAwayError | StepsLostError):
            stop.leave()  # what is stored is not known: the run is driven again from the log
            raise failure
        return None if stop.is_left else _settled(work, stop, live.record.head.name)

    async def _answer(
        self, live: LiveRun, stop: StopWish, closing: contextlib.AsyncExitStack
    ) -> Answer:
        """Do the work. What is opened is closed by `closing`, after the outcome is told."""
        spec, journal = live.record.head.spec, live.journal
        time_max_s = limits_of(spec).time_max_s
        blobs = PatientBlobs(self.blobs, lambda: time_max_s - _elapsed_s(journal.run))
        version = live.record.head.profile_version
        profile = await blobs.outlast(lambda: self.profiles.kept(version))
        live = dataclasses.replace(live, profile=profile)
        # A session's clock begins with the start; who finds none stored need look for no session.
        await self.log.stored(live.record.run_id)
        context, documents = await self._context(live.tenant, spec.context)
        if context.shape.malformed_sequences:
            count = context.shape.malformed_sequences
            text = f"{count:,} byte sequences of the context are not UTF-8 and are read as U+FFFD"
            journal.notice("CONTEXT_MALFORMED_UTF8", text)
        tiers = await self._tiers(live, left_s=time_max_s - _elapsed_s(journal.run))
        earlier = await self._earlier(live)
        mounted = _mounted(context, documents, earlier)
        direct = await self._direct(live, mounted, tiers[0], blobs)
        elapsed_s = _elapsed_s(journal.run)
        assembled = assemble(
            self, live, mounted, tiers, elapsed_s=elapsed_s, direct=direct, earlier=earlier
        )
        closing.push_async_callback(_close, assembled, stop)
        loop = assembled.loop
        try:
            answer = await loop.answer()
            if spec.conversation:
                await assembled.checkpoints.at_end()
        except BaseException:
            if not stop.is_left:
                loop.write_cut()
                journal.run.found_so_far = loop.found_so_far
            raise
        return answer

    async def _earlier(self, live: LiveRun) -> Earlier | None:
        """Return what a run of a conversation goes on from, also where it is a fork of one; None
        for others."""
        head = live.record.head
        if head.forked_from:
            head = await self.recall.origin(live.tenant, head)
        if not head.spec.conversation:
            return None
        run_id = head.name.removeprefix("runs/")
        return await self.recall.before(live.tenant, head.spec.conversation, run_id)

    async def _direct(
        self, live: LiveRun, mounted: Mounted, root: TierFacts, blobs: PatientBlobs
    ) -> list[Message]:
        """Return what the root model is asked first where it is shown all of the data; nothing
        where it is not. What the log says of that goes first."""
        spec = live.record.head.spec
        first = live.journal.recorded.find(turn_started(1), 0)
        if first is not None:
            is_direct = first.turn_started.direct
        else:
            is_direct = goes_direct(
                mounted.context,
                spec.question,
                direct_tokens_max=spec.direct_tokens_max,
                window_tokens=root.window_tokens,
            )
        if not is_direct or spec.conversation:
            return []
        question = question_words(spec.question, live.profile) + direct_demands(
            self.prompts, schema_json=spec.answer_schema_json, confidence_min=spec.confidence_min
        )
        return await direct_messages(
            self.prompts, blobs, mounted.context, mounted.documents, question
        )

    async def _tiers(self, live: LiveRun, *, left_s: float) -> tuple[TierFacts, TierFacts]:
        """Return what is known of the run's tiers; a gateway that is away is waited for."""
        spec, until_s = live.record.head.spec, time.monotonic() + left_s
        while True:
            try:
                return await self.catalog.facts(
                    live.tenant, root_tier=spec.root_tier, sub_tier=spec.sub_tier
                )
            except ReceivedError as error:
                is_late = time.monotonic() + _GATEWAY_RETRY_S >= until_s
                if error.code not in _AWAY or is_late:
                    raise
            await asyncio.sleep(_GATEWAY_RETRY_S)

    async def _delete_sessions(self, live: LiveRun, stop: StopWish) -> None:
        """Delete, at a run's end, the sessions that other processes have left. One that let go of
        the run deletes them too where it learned too late that the run had ended elsewhere."""
        run_id = live.record.run_id
        try:
            may_be_left = await self.log.has_ended(run_id) if stop.is_left else live.is_resumed
            if not may_be_left:
                return
            for session in await self.sandbox.sessions_of(run_id):
                await self.sandbox.delete_session(session.name)
        except DatabaseAwayError:
            _log.warning("sessions were not looked for", extra={"run": live.record.head.name})
        except ReceivedError as error:
            _log.warning("sessions were not deleted", extra={"reason": error.reason_name})

    async def _context(self, tenant: str, name: str) -> tuple[StoredContext, list[StoredDocument]]:
        context_id = name.removeprefix("contexts/")
        context = await self.contexts.get(tenant, context_id)
        if context.kind is not ContextKind.DOCUMENTS:
            return context, []
        return context, await self.contexts.documents(tenant, context_id)


def _elapsed_s(run: Run) -> float:
    """Return seconds since a run's start, by the clock that all processes share."""
    return max(0.0, time.time() - run.start_time.ToNanoseconds() / 1e9)


def _mounted(
    context: StoredContext, documents: list[StoredDocument], earlier: Earlier | None
) -> Mounted:
    session = earlier.session if earlier is not None else None
    if session is None:
        return Mounted(context, documents)
    return Mounted(
        context, documents, base_key=session.checkpoint_key, executions=session.executions
    )


async def _close(assembled: AssembledRun, stop: StopWish) -> None:
    await assembled.checkpoints.close()
    if stop.is_left:
        assembled.repl.leave()
    else:
        await assembled.repl.close()


def _settled(work: asyncio.Task[Answer], stop: StopWish, name: str) -> Run:
    """Return the run's terminal state, with its answer or error, from how its work ended."""
    if work.cancelled():
        error = stop.error(name)
        is_cancelled = isinstance(error, RunCancelledError)
        state = Run.STATE_CANCELLED if is_cancelled else Run.STATE_FAILED
        return Run(state=state, error=error.to_status())
    failure = work.exception()
    if failure is None:
        answer = work.result()
        state = Run.STATE_PARTIAL if answer.limit_reached else Run.STATE_ANSWERED
        return Run(state=state, answer=answer)
    if isinstance(failure, ServiceError):
        return Run(state=Run.STATE_FAILED, error=failure.to_status())
    _log.error("unforeseen error in %s", name, exc_info=failure)
    return Run(state=Run.STATE_FAILED, error=ServiceError("internal error").to_status())


def _queued_s(record: RunRecord) -> float | None:
    """Return how long a run has waited; None for one that was begun before."""
    if record.progress.HasField("start_time"):
        return None
    return max(0.0, time.time() - record.head.create_time.ToNanoseconds() / 1e9)


def _may_have_cut(outcome: Run, journal: RunJournal) -> bool:
    """Whether calls may have taken more than the log tells."""
    if not journal.recorded.newest_turn:
        return False
    is_broken_off = outcome.state in (Run.STATE_FAILED, Run.STATE_CANCELLED)
    return is_broken_off or journal.recorded.may_have_cut


def _span_of(record: RunRecord) -> contextlib.AbstractContextManager[Span]:
    """Return the span that is current while a run is driven, and while its end is stored."""
    attributes: dict[str, str | int] = {
        names.GEN_AI_OPERATION_NAME: names.SPAN_INVOKE_AGENT,
        names.RUN_ID: record.head.name,
        names.DEPTH: record.head.depth,
    }
    return tracer(__name__).start_as_current_span(names.SPAN_INVOKE_AGENT, attributes=attributes)


def _log_end(record: RunRecord) -> None:
    run = record.progress
    facts = {
        "run": record.head.name,
        "status": status_word(run),
        "turns": run.turns,
        "sub_calls": run.sub_calls,
        "cost_usd_nanos": run.usage.cost_usd_nanos,
        "limit_reached": run.answer.limit_reached,
        "error": run.error.message,
    }
    _log.info("a run has ended", extra=facts)


def _end_span(span: Span, outcome: Run, usage: Usage) -> None:
    span.set_attribute(names.STATUS, status_word(outcome))
    span.set_attribute(names.GEN_AI_USAGE_INPUT_TOKENS, usage.input_tokens)
    span.set_attribute(names.GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens)
    is_failed = outcome.state == Run.STATE_FAILED
    span.set_status(Status(StatusCode.ERROR if is_failed else StatusCode.OK))
