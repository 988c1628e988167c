"""What one session has used so far, in its worker, and where its fixed clock stands."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sandbox_service import frames
from sandbox_service.limits import Allowance
from sandbox_service.worker.surroundings import FixedSurroundings, HostSurroundings, Surroundings


class SessionAccount:
    """Goes on from execution to execution; used by the session's own thread."""

    def __init__(self, opening: frames.Open) -> None:
        """Begin where the session was left, on whichever worker."""
        self.determinism = opening.determinism
        """What it finds around it, its clock as of the last execution; None for the host's own."""
        self._limits = opening.limits
        self._fuel_used = opening.fuel_used
        self._time_used_s = opening.time_used_s

    def allowance(self) -> Allowance:
        """Return what the next execution may use."""
        return Allowance.of(self._limits, self._fuel_used, self._time_used_s)

    def surroundings(self, execution: int, fuel_used: Callable[[], int]) -> Surroundings:
        """Return what an execution finds around it; `fuel_used` tells what it has used itself."""
        if self.determinism is None:
            return HostSurroundings()
        return FixedSurroundings(self.determinism, execution, fuel_used)

    def clock_ns(self, surroundings: Surroundings, *, is_kept: bool) -> int:
        """Return where the clock stands after an execution; 0 where it is the host's.

        One that is undone moves no clock: how far it came may differ from time to time.
        """
        if self.determinism is None:
            return 0
        return surroundings.clock_ns(0) if is_kept else self.determinism.clock_ns

    def note(self, ended: frames.Ended) -> None:
        """Let the next execution go on from what this one has used, and where its clock is."""
        self._fuel_used += ended.fuel_used
        self._time_used_s += ended.own_time_s
        if self.determinism is not None:
            self.determinism = msgspec.structs.replace(self.determinism, clock_ns=ended.clock_ns)
