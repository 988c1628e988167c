"""What a run's session has before the first cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from orchestrator.contexts.stored_context import StoredContext, StoredDocument
from orchestrator.runs.sessions.executions import SessionNature


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a fresh session of a run is."""

    mounted: Mounted
    """What it has as `context`."""
    prelude: Prelude
    """What it has besides."""
    nature: SessionNature
    """What makes it do the same whenever it is made."""
    cell_time_max_s: float
    """Longest time of a piece of code in it."""

    def emptied(self) -> Beginning:
        """Return one that begins with its context alone, and with no checkpoint."""
        return dataclasses.replace(
            self, mounted=dataclasses.replace(self.mounted, base_key="", executions=0)
        )
