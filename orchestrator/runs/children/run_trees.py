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
class RunTrees:
    """Trees of runs, of every tenant."""

    children: ChildRuns
    """Starts, follows and stops child runs."""
    usage: RunUsage
    """Sums up what a tree took."""
    tokens: RunTokenVerifier
    """Checks the tokens of those who start child runs."""

    @classmethod
    def over(
        cls,
        database: Database,
        blobs: BlobStore,
        log: EventLog,
        tokens: RunTokenVerifier,
        contexts: tuple[ContextStore, Uploads],
        schemas: AnswerSchemas,
        *,
        context_ttl_s: float,
        per_tree_max: int,
    ) -> Self:
        """Put them together over what all runs share."""
        store, runs = ChildStore(database, per_tree_max=per_tree_max), RunStore(database)
        kept, uploads = contexts
        maker = ChildContexts(
            kept, blobs, UploadedValues(uploads, kept, kept_s=context_ttl_s), kept_s=context_ttl_s
        )
        return cls(
            children=ChildRuns(store, runs, maker, log, schemas),
            usage=RunUsage(runs, store, LateUsage(database)),
            tokens=tokens,
        )
