"""What a run's session has before the first cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from orchestrator.contexts.stored_context import StoredContext, StoredDocument


@dataclasses.dataclass(frozen=True)
class Mounted:
    """What a session has as `context`."""

    context: StoredContext
    """The context."""
    documents: Sequence[StoredDocument]
    """Its documents; empty unless the kind is DOCUMENTS."""
    base_key: str = ""
    """The checkpoint that a fresh session is made from, with `context` in it; empty for none."""
    executions: int = 0
    """Executions that a session has ended that was made from it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prelude:
    """What a session is before the first cell, besides its context."""

    guest: str = ""
    """What it has imported; empty for the sandbox service's default."""
    sources: Sequence[tuple[str, str]] = ()
    """Python sources that are run in it, each after its name."""
    profile: str = ""
    """Whose they are, for errors."""
