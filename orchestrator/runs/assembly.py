"""What one run works with, put together from what all runs share. Nothing is opened here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fathom.gateway.v1.generation_pb2 import Message
from fathom.orchestrator.v1.run_event_pb2 import Notice, RunEvent
from fathom.orchestrator.v1.run_pb2 import Limits, RunSpec

from common.run_token import RunTokenSigner
from orchestrator.blobs import BlobStore
from orchestrator.conversations.recall import Earlier
from orchestrator.model_catalog import TierFacts
from orchestrator.profiles.prelude import prelude_of
from orchestrator.profiles.profile import NO_PROFILE, Profile
from orchestrator.profiles.profiles import Profiles
from orchestrator.profiles.words import profile_prompts, question_words, system_words
from orchestrator.runs.answers.answer_schema import AnswerSchema, AnswerSchemas
from orchestrator.runs.answers.citations import CitationDesk
from orchestrator.runs.budget import Allowance, Budget
from orchestrator.runs.children.child_runs import ChildRuns
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.children.told import ToldChildren
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.loop import LoopParts, RunLoop
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.model.compaction import Compaction, CompactionParts
from orchestrator.runs.model.earlier_words import earlier_words
from orchestrator.runs.model.history import History
from orchestrator.runs.model.last_request import LastRequest
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.model.question import question_message
from orchestrator.runs.model.room import Room
from orchestrator.runs.model.root_model import RootModel
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.patient_blobs import PatientBlobs
from orchestrator.runs.ports import Model, Sandbox
from orchestrator.runs.sessions.beginning import Beginning, Mounted
from orchestrator.runs.sessions.cells import CellRunner
from orchestrator.runs.sessions.checkpoint_owners import CheckpointBooks, owner_of
from orchestrator.runs.sessions.checkpoints import Checkpoints
from orchestrator.runs.sessions.code_steps import CodeSteps
from orchestrator.runs.sessions.executions import PastExecution, SessionNature
from orchestrator.runs.sessions.kept_results import KeptResults
from orchestrator.runs.sessions.repl import Repl
from orchestrator.runs.sessions.session_source import SessionSource
from orchestrator.runs.sessions.sub_calls import SubCalls
from orchestrator.runs.spec import limits_of

_OUTPUT_CHARACTERS_PER_TOKEN = 3 / 8
"""Of the root model's window: one cell's output takes about an eighth of it at most."""
_OUTPUT_CHARACTERS_MIN = 1_000


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
    checkpoint_after_s: float
    """Own work of a run's code after which its session is stored, so that a lost one need not
    repeat that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTools:
    """What every run works with."""

    model: Model
    """The door to the root model."""
    sandbox: Sandbox
    """The door to sessions."""
    blobs: BlobStore
    """Where whole outputs go."""
    signer: RunTokenSigner
    """Signs run tokens."""
    prompts: PromptBook
    """What models are told."""
    meters: RunMeters
    """Where runs are counted."""
    schemas: AnswerSchemas
    """Checks typed answers."""
    children: ChildRuns
    """The child runs of all runs."""
    profiles: Profiles
    """What runs of one kind have in common."""
    checkpoint_books: CheckpointBooks
    """Where it is noted whose checkpoints there are."""
    settings: DriverSettings
    """How."""


@dataclasses.dataclass(frozen=True)
class LiveRun:
    """A run that is driven."""

    tenant: str
    """Whose it is."""
    record: RunRecord
    """The run."""
    journal: RunJournal
    """Where its steps are written down."""
    is_resumed: bool
    """True where it was driven before."""
    lineage: Lineage | None = None
    """What is above it; None for a run without a parent."""
    profile: Profile = NO_PROFILE
    """The version of its profile that it works with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssembledRun:
    """What one run works with."""

    repl: Repl
    """Its session; to be closed or left."""
    checkpoints: Checkpoints
    """What stores that; to be closed."""
    loop: RunLoop
    """What it does."""


def assemble(
    tools: RunTools,
    live: LiveRun,
    mounted: Mounted,
    tiers: tuple[TierFacts, TierFacts],
    *,
    elapsed_s: float,
    direct: Sequence[Message] = (),
    earlier: Earlier | None = None,
) -> AssembledRun:
    """Put together what one run works with; `tiers` are those of the root model and of sub-calls.
    The run began `elapsed_s` ago. `direct` is what its model is asked first where it is shown all
    of the data; `earlier` what a run of a conversation goes on from."""
    record, journal = live.record, live.journal
    spec, (root, sub) = record.head.spec, tiers
    last_request = LastRequest(
        root, tools.settings.last_answer_tokens, tools.settings.last_request_bytes
    )
    at_worst = Allowance(last_request.tokens_at_worst, last_request.cost_usd_nanos_at_worst)
    budget = Budget(limits_of(spec), last_call=at_worst, elapsed_s=elapsed_s)
    passes = _passes(tools, live, budget)
    repl = _repl(tools, live, mounted, budget, passes)
    checkpoints = Checkpoints(
        repl,
        journal,
        tools.checkpoint_books,
        tenant=live.tenant,
        owner=owner_of(record.head),
        own_time_min_s=tools.settings.checkpoint_after_s,
    )
    window_tokens = root.window_tokens
    history = _history(tools, live, mounted, budget, sub, earlier, window_tokens=window_tokens)
    blobs = PatientBlobs(tools.blobs, lambda: budget.work_left_s)
    cells = _cells(tools, live, repl, budget, blobs, window_tokens=window_tokens)
    if earlier is not None and earlier.session is not None:
        cells.begin_with(earlier.session.variables)
    compaction = _compaction(tools, history, spec, root, sub)
    parts = LoopParts(
        run_id=record.run_id,
        root=RootModel(
            tools.model,
            history,
            Room(compaction, journal, budget, passes, run_id=record.run_id),
            journal,
            budget,
            passes,
            run_id=record.run_id,
            tier=spec.root_tier,
            open_session=cells.open,
        ),
        cells=cells,
        checkpoints=checkpoints,
        history=history,
        direct=direct,
        confidence_min=spec.confidence_min,
        citations_required=live.profile.citations_required,
        budget=budget,
        journal=journal,
        prompts=tools.prompts,
        last_request=last_request,
        schema=AnswerSchema(tools.schemas, spec.answer_schema_json),
        citations=CitationDesk(blobs, mounted.context, mounted.documents),
    )
    return AssembledRun(repl=repl, checkpoints=checkpoints, loop=RunLoop(parts))


def _passes(tools: RunTools, live: LiveRun, budget: Budget) -> RunPasses:
    head = live.record.head
    return RunPasses(
        tools.signer,
        budget,
        tenant=live.tenant,
        run=head.name,
        root_tier=head.spec.root_tier,
        sub_tier=head.spec.sub_tier,
        depth=head.depth,
        lineage=live.lineage,
        key=head.created_by,
    )


def _repl(
    tools: RunTools, live: LiveRun, mounted: Mounted, budget: Budget, passes: RunPasses
) -> Repl:
    record, journal = live.record, live.journal
    started_ns = journal.run.start_time.ToNanoseconds()
    first = journal.recorded.first_execution()
    nature = (
        SessionNature.of_run(record.run_id, started_ns=started_ns)
        if first is None
        else SessionNature.of_record(first)
    )
    beginning = Beginning(
        mounted=mounted,
        prelude=prelude_of(live.profile),
        nature=nature,
        cell_time_max_s=tools.settings.cell_time_max_s,
    )
    source = SessionSource(
        tools.sandbox,
        beginning,
        run_id=record.run_id,
        budget=budget,
        passes=passes,
        is_resumed=live.is_resumed,
        on_difference=lambda past: _note_difference(journal, past),
    )
    return Repl(tools.sandbox, source, run_id=record.run_id, budget=budget, passes=passes)


def _history(
    tools: RunTools,
    live: LiveRun,
    mounted: Mounted,
    budget: Budget,
    sub: TierFacts,
    earlier: Earlier | None,
    *,
    window_tokens: int,
) -> History:
    spec, profile = live.record.head.spec, live.profile
    earlier_text = ""
    if earlier is not None:
        earlier_text = earlier_words(tools.prompts, earlier, window_tokens=window_tokens)
    return History(
        system=profile_prompts(tools.prompts, profile).system(
            window_tokens=sub.window_tokens,
            children_live_max=_children_live_max(spec.limits),
        )
        + system_words(tools.prompts, profile),
        question=question_message(
            tools.prompts,
            question_words(spec.question, profile),
            mounted.context,
            mounted.documents,
            budget.limits,
            schema_json=spec.answer_schema_json,
            confidence_min=spec.confidence_min,
            earlier=earlier_text,
        ),
    )


def _compaction(
    tools: RunTools, history: History, spec: RunSpec, root: TierFacts, sub: TierFacts
) -> Compaction:
    return Compaction(
        CompactionParts(
            history=history,
            root=root,
            root_tier=spec.root_tier,
            sub=sub,
            sub_tier=spec.sub_tier,
            model=tools.model,
            prompts=tools.prompts,
        )
    )


def _cells(
    tools: RunTools,
    live: LiveRun,
    repl: Repl,
    budget: Budget,
    blobs: PatientBlobs,
    *,
    window_tokens: int,
) -> CellRunner:
    shown_max = tools.settings.output_characters_max
    if window_tokens:
        share = int(window_tokens * _OUTPUT_CHARACTERS_PER_TOKEN)
        shown_max = min(shown_max, max(share, _OUTPUT_CHARACTERS_MIN))
    code = CodeSteps(
        repl,
        live.journal,
        SubCalls(live.journal, budget, tools.meters),
        ToldChildren(live.record, live.journal, budget),
        tools.children,
        budget,
        KeptResults(blobs, run_id=live.record.run_id),
        run_id=live.record.run_id,
        output_characters_max=shown_max,
    )
    return CellRunner(
        code,
        live.journal,
        tools.prompts,
        output_characters_max=shown_max,
    )


def _children_live_max(limits: Limits) -> int:
    """Return how many child runs a run may have at a time; 0 where it may have none."""
    return limits.children_live_max if limits.depth_max else 0


def _note_difference(journal: RunJournal, past: PastExecution) -> None:
    turn, cell = past.place
    text = (
        f"cell {cell} of turn {turn} was run again to rebuild the session, and did not end or print"
        " as it did at first"
    )
    notice = Notice(kind="REPLAY_DIFFERS", text=text)
    journal.add_once(RunEvent(turn=turn, cell=cell, notice=notice), may_wait=True)
