"""Deletion of sessions that runs have left behind: whoever drove a run was killed, or let go of it,
between the run's end and its session's. Without this they would take memory until they are idle
for too long.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Protocol

_log = logging.getLogger(__name__)


class SessionDoor(Protocol):
    """Where sessions are."""

    async def sessions_of_runs(self) -> Mapping[str, str]:
        """Return the run's id of each session that has one, by `sessions/{session}`; raises
        ReceivedError."""

    async def delete_session(self, session: str) -> None:
        """End a session; succeeds where there is none. Raises ReceivedError."""


class RunEnds(Protocol):
    """Where the ends of runs are stored."""

    async def ended_among(self, run_ids: Collection[str]) -> frozenset[str]:
        """Return those that have ended."""


class SessionSweep:
    """Has sessions deleted."""

    def __init__(self, runs: RunEnds, door: SessionDoor) -> None:
        self._runs = runs
        self._door = door
        self._found: frozenset[str] = frozenset()

    async def sweep(self) -> None:
        """Delete the sessions whose run had ended the last time too: who drives a run ends its
        session by itself, a moment after the run's end. Sessions of runs that are not in the
        database are another deployment's."""
        sessions = await self._door.sessions_of_runs()
        ended = await self._runs.ended_among(set(sessions.values()))
        found = frozenset(session for session, run_id in sessions.items() if run_id in ended)
        left = sorted(found & self._found)
        self._found = found
        for session in left:
            await self._door.delete_session(session)
        if left:
            _log.warning("sessions of ended runs were left", extra={"sessions": len(left)})
