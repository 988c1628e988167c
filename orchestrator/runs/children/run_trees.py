"""What trees of runs take, put together."""

from __future__ import annotations

import dataclasses
from typing import Self

from common.database import Database
from common.run_token import RunTokenVerifier
from orchestrator.blobs import BlobStore
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.uploads import Uploads
from orchestrator.runs.answers.answer_schema import AnswerSchemas
from orchestrator.runs.children.child_runs import ChildRuns
from orchestrator.runs.children.context import ChildContexts
from orchestrator.runs.children.store import ChildStore
from orchestrator.runs.children.values import UploadedValues
from orchestrator.runs.late_usage import LateUsage
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.usage import RunUsage


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """How large trees of runs may be."""

    context_ttl_s: float
    """How long a context is kept that was made for a child run."""
    per_tree_max: int
    """Child runs that a run and all below it may start in their whole life."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeGround:
    """What trees have in common with all runs."""

    database: Database
    """Where runs are."""
    blobs: BlobStore
    """Where the bytes of contexts are."""
    contexts: ContextStore
    """What they are about."""
    uploads: Uploads
    """The way in for what code gives to a child."""
    log: EventLog
    """Where their ends are heard of."""
    schemas: AnswerSchemas
    """Checks what their answers are to fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTrees:
    """Trees of runs, of every tenant."""

    children: ChildRuns
    """Starts, follows and stops child runs."""
    usage: RunUsage
    """Sums up what a tree took."""
    tokens: RunTokenVerifier
    """Checks the tokens of those who start child runs."""

    @classmethod
    def over(cls, ground: TreeGround, tokens: RunTokenVerifier, settings: TreeSettings) -> Self:
        """Put them together over what all runs share."""
        database = ground.database
        store = ChildStore(database, per_tree_max=settings.per_tree_max)
        runs, kept_s = RunStore(database), settings.context_ttl_s
        values = UploadedValues(ground.uploads, ground.contexts, kept_s=kept_s)
        maker = ChildContexts(ground.contexts, ground.blobs, values, kept_s=kept_s)
        return cls(
            children=ChildRuns(store, runs, maker, ground.log, ground.schemas),
            usage=RunUsage(runs, store, LateUsage(database)),
            tokens=tokens,
        )
