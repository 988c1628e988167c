"""Sessions that were lost: who asks for one is told why, and what it can be restored from."""

from __future__ import annotations

import dataclasses
import time

from sandbox_service.errors import SessionLostError
from sandbox_service.session import Session

_REMEMBERED_S = 3_600.0


@dataclasses.dataclass(frozen=True)
class _LostSession:
    cause: str
    checkpoint_key: str
    noticed_s: float


class LostSessions:
    """Those of the last hour."""

    def __init__(self) -> None:
        self._sessions: dict[str, _LostSession] = {}

    def add(self, session: Session) -> None:
        """Remember one, whatever becomes of it."""
        self._sessions[session.name] = _LostSession(
            session.loss, session.checkpoint_key, time.monotonic()
        )

    def check(self, name: str) -> None:
        """Raise SessionLostError where it is one of them."""
        lost = self._sessions.get(name)
        if lost is not None:
            raise SessionLostError(name, lost.cause, lost.checkpoint_key)

    def forget_old(self) -> None:
        """Forget those of which nobody asks any more."""
        before_s = time.monotonic() - _REMEMBERED_S
        self._sessions = {
            name: lost for name, lost in self._sessions.items() if lost.noticed_s > before_s
        }
