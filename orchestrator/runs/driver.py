"""Drives one run from the queue to a terminal state, whatever happens on the way.

What can go wrong ends here: an answer, a limit, a failure of another service, a cancellation and
the unforeseen each become the run's outcome, stored with its last event.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time

from fathom.orchestrator.v1.run_pb2 import Answer, Run
from opentelemetry.trace import Span, Status, StatusCode

from common import telemetry_names as names
from common.errors import ServiceError
from common.run_token import RunTokenSigner
from common.telemetry import tracer
from orchestrator.blobs import BlobStore
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.errors import RunCancelledError
from orchestrator.model_catalog import ModelCatalog, TierFacts
from orchestrator.runs.budget import Allowance, Budget
from orchestrator.runs.cells import CellRunner
from orchestrator.runs.event_log import EventLog
from orchestrator.runs.history import History
from orchestrator.runs.journal import RunJournal
from orchestrator.runs.last_request import LastRequest
from orchestrator.runs.loop import LoopParts, RunLoop
from orchestrator.runs.meters import RunMeters, status_word
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import Model, Sandbox
from orchestrator.runs.prompt_book import PromptBook
from orchestrator.runs.question import question_message
from orchestrator.runs.record import RunRecord
from orchestrator.runs.repl import Repl
from orchestrator.runs.spec import limits_of
from orchestrator.runs.stop_wish import StopWish
from orchestrator.runs.sub_calls import SubCalls

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriverSettings:
    """How runs are driven."""

    cell_time_max_s: float
    """Own work of one cell."""
    output_characters_max: int
    """Characters of a cell's output that the model is shown."""
    last_answer_tokens: int
    """Tokens that a last answer may have."""
    last_request_bytes: int
    """Bytes that the messages of a last request may have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDriver:
    """What every run is driven with."""

    model: Model
    """The door to the root model."""
    sandbox: Sandbox
    """The door to sessions."""
    catalog: ModelCatalog
    """What models there are."""
    contexts: ContextStore
    """What runs read."""
    blobs: BlobStore
    """Where whole outputs go."""
    log: EventLog
    """Where steps are written down."""
    signer: RunTokenSigner
    """Signs run tokens."""
    prompts: PromptBook
    """What models are told."""
    meters: RunMeters
    """Where runs are counted."""
    settings: DriverSettings
    """How."""

    async def drive(self, tenant: str, record: RunRecord, stop: StopWish) -> None:
        """Bring a queued run to its end and store that. Never raises, but what the event log
        raises; a wish to stop ends the run and not this call."""
        journal = RunJournal(record, self.log)
        created_s = record.head.create_time.ToNanoseconds() / 1e9
        started_s = self.meters.begin(queued_s=max(0.0, time.time() - created_s))
        if not stop.is_wished:
            journal.run.state = Run.STATE_RUNNING
            journal.run.start_time.GetCurrentTime()
            journal.add_state()
        attributes: dict[str, str | int] = {
            names.GEN_AI_OPERATION_NAME: names.SPAN_INVOKE_AGENT,
            names.RUN_ID: record.head.name,
            names.DEPTH: 0,
        }
        async with contextlib.AsyncExitStack() as closing:
            with tracer(__name__).start_as_current_span(
                names.SPAN_INVOKE_AGENT, attributes=attributes
            ) as span:
                work = asyncio.create_task(self._answer(tenant, record, journal, closing))
                stop.stops(work)
                try:
                    await asyncio.wait({work})
                finally:
                    work.cancel()
                _settle(journal.run, work, stop, record.head.name)
                _end_span(span, journal.run)
                _log_end(record)
            journal.run.sub_calls_live = 0
            journal.run.end_time.GetCurrentTime()
            journal.add_state()
            self.meters.end(journal.run, started_s)

    async def _answer(
        self,
        tenant: str,
        record: RunRecord,
        journal: RunJournal,
        closing: contextlib.AsyncExitStack,
    ) -> Answer:
        """Do the work. What is opened is closed by `closing`, after the outcome is told."""
        spec = record.head.spec
        context, documents = await self._context(tenant, spec.context)
        if context.shape.malformed_sequences:
            count = context.shape.malformed_sequences
            text = f"{count:,} byte sequences of the context are not UTF-8 and are read as U+FFFD"
            journal.notice("CONTEXT_MALFORMED_UTF8", text)
        tiers = await self.catalog.facts(tenant, root_tier=spec.root_tier, sub_tier=spec.sub_tier)
        repl, loop = self._build(tenant, record, journal, _Data(context, documents), tiers)
        closing.push_async_callback(repl.close)
        repl.open()
        try:
            return await loop.answer()
        except BaseException:
            journal.run.found_so_far = loop.found_so_far
            raise

    def _build(
        self,
        tenant: str,
        record: RunRecord,
        journal: RunJournal,
        data: _Data,
        tiers: tuple[TierFacts, TierFacts],
    ) -> tuple[Repl, RunLoop]:
        """Put together what one run works with."""
        spec, (root, sub) = record.head.spec, tiers
        last_request = LastRequest(
            root, self.settings.last_answer_tokens, self.settings.last_request_bytes
        )
        at_worst = Allowance(last_request.tokens_at_worst, last_request.cost_usd_nanos_at_worst)
        budget = Budget(limits_of(spec), last_call=at_worst)
        passes = RunPasses(
            self.signer,
            budget,
            tenant=tenant,
            run=record.head.name,
            root_tier=spec.root_tier,
            sub_tier=spec.sub_tier,
        )
        repl = Repl(
            self.sandbox,
            data.context,
            data.documents,
            run_id=record.run_id,
            budget=budget,
            passes=passes,
            cell_time_max_s=self.settings.cell_time_max_s,
        )
        cells = CellRunner(
            repl,
            journal,
            SubCalls(journal, budget, self.meters),
            self.prompts,
            self.blobs,
            run_id=record.run_id,
            output_characters_max=self.settings.output_characters_max,
        )
        question = question_message(
            self.prompts, spec.question, data.context, data.documents, budget.limits
        )
        system = self.prompts.system(window_tokens=sub.window_tokens)
        parts = LoopParts(
            run_id=record.run_id,
            root_tier=spec.root_tier,
            model=self.model,
            cells=cells,
            history=History(system=system, question=question),
            budget=budget,
            passes=passes,
            journal=journal,
            prompts=self.prompts,
            last_request=last_request,
        )
        return repl, RunLoop(parts)

    async def _context(self, tenant: str, name: str) -> tuple[StoredContext, list[StoredDocument]]:
        context_id = name.removeprefix("contexts/")
        context = await self.contexts.get(tenant, context_id)
        if context.kind is not ContextKind.DOCUMENTS:
            return context, []
        return context, await self.contexts.documents(tenant, context_id)


@dataclasses.dataclass(frozen=True)
class _Data:
    context: StoredContext
    documents: list[StoredDocument]


def _settle(run: Run, work: asyncio.Task[Answer], stop: StopWish, name: str) -> None:
    """Set the run's terminal state from how its work ended."""
    if work.cancelled():
        error = stop.error(name)
        is_cancelled = isinstance(error, RunCancelledError)
        run.state = Run.STATE_CANCELLED if is_cancelled else Run.STATE_FAILED
        run.error.CopyFrom(error.to_status())
        return
    failure = work.exception()
    if failure is None:
        run.answer.CopyFrom(work.result())
        run.state = Run.STATE_PARTIAL if run.answer.limit_reached else Run.STATE_ANSWERED
        return
    run.state = Run.STATE_FAILED
    if isinstance(failure, ServiceError):
        run.error.CopyFrom(failure.to_status())
    else:
        _log.error("unforeseen error in %s", name, exc_info=failure)
        run.error.CopyFrom(ServiceError("internal error").to_status())


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


def _end_span(span: Span, run: Run) -> None:
    span.set_attribute(names.STATUS, status_word(run))
    span.set_attribute(names.GEN_AI_USAGE_INPUT_TOKENS, run.usage.input_tokens)
    span.set_attribute(names.GEN_AI_USAGE_OUTPUT_TOKENS, run.usage.output_tokens)
    is_failed = run.state == Run.STATE_FAILED
    span.set_status(Status(StatusCode.ERROR if is_failed else StatusCode.OK))
