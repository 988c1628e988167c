"""Checks the audit log: each entry against the one before it, and the events of each run that is
still kept against the digest in the entry of its end.
"""

from __future__ import annotations

import dataclasses

from common.database import Database
from orchestrator.operations.audit_log import FIRST_PREVIOUS, AuditEntry, AuditLog, chain_problem
from orchestrator.operations.run_books import events_digest

_PAGE_ENTRIES = 500
_PROBLEMS_MAX = 100


@dataclasses.dataclass(frozen=True)
class AuditProblem:
    """A place where the record was changed."""

    sequence: int
    """The entry."""
    subject: str
    """Its subject."""
    text: str
    """For people."""


@dataclasses.dataclass
class AuditFindings:
    """What a check has found."""

    entries: int = 0
    """Entries looked at."""
    runs: int = 0
    """Runs whose events were looked at."""
    blake3: str = FIRST_PREVIOUS
    """Digest of the newest entry."""
    problems: list[AuditProblem] = dataclasses.field(default_factory=list)
    """What does not fit, at most 100."""


class AuditCheck:
    """The check of one service's log."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def verify(self) -> AuditFindings:
        """Look at every entry and at every run that is kept."""
        findings = AuditFindings()
        before: AuditEntry | None = None
        gone: dict[str, AuditEntry] = {}
        while True:
            page = await self._audit.page(
                tenant=None,
                subject="",
                after=before.sequence if before else 0,
                count=_PAGE_ENTRIES,
            )
            for entry in page:
                self._note(findings, entry, chain_problem(before, entry))
                if entry.deed.action == "run.ended":
                    await self._check_events(findings, entry, gone)
                elif entry.deed.action == "run.deleted":
                    gone.pop(entry.deed.subject, None)
                findings.entries += 1
                before = entry
            if not page:
                for entry in gone.values():
                    self._note(findings, entry, "the run's events are gone")
                findings.blake3 = before.blake3 if before else FIRST_PREVIOUS
                return findings

    async def _check_events(
        self, findings: AuditFindings, entry: AuditEntry, gone: dict[str, AuditEntry]
    ) -> None:
        """Look at the events of a run that has ended; note in `gone` that it has none, which is
        in order only where an entry tells of its deletion."""
        deed = entry.deed
        try:
            async with self._database.reading() as connection:
                count, digest = await events_digest(connection, deed.subject.removeprefix("runs/"))
        except TypeError:  # a value of a kind that no writer of events stores
            count, digest = -1, ""
        if not count:
            gone[deed.subject] = entry
            return
        findings.runs += 1
        if (deed.details.get("events_blake3"), deed.details.get("events")) != (digest, str(count)):
            self._note(findings, entry, "the run's events were changed")

    @staticmethod
    def _note(findings: AuditFindings, entry: AuditEntry, text: str) -> None:
        if text and len(findings.problems) < _PROBLEMS_MAX:
            findings.problems.append(AuditProblem(entry.sequence, entry.deed.subject, text))
