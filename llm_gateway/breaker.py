"""A circuit breaker: a deployment that keeps failing is left alone for a while, then tried again
by one call at a time.

It judges by what the provider did wrong; a rate limit or a refused request says nothing of its
health.
"""

from __future__ import annotations

from collections import deque

_FAILURES_IN_A_ROW = 5
_OUTCOMES_KEPT = 20
_OUTCOMES_MIN = 10
_FAILED_SHARE = 0.5
_WINDOW_S = 30.0
_OPEN_S = 5.0
_OPEN_S_MAX = 60.0
_PROBE_S = 1.0
"""One call an interval is let through to see whether it is over."""


class CircuitBreaker:
    """The health of one deployment. Times are of one clock, in seconds."""

    def __init__(self) -> None:
        self.is_open = False
        """Whether calls are kept away, but for probes."""
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=_OUTCOMES_KEPT)
        self._failures = 0
        self._open_s = _OPEN_S
        self._not_before = 0.0

    def wait_s(self, now: float) -> float:
        """Return the seconds until a call may be tried, 0 where it may be now."""
        return max(self._not_before - now, 0.0) if self.is_open else 0.0

    def admits(self, now: float) -> bool:
        """Whether a call may be made; of an open breaker it is the probe, and the only one."""
        if self.wait_s(now):
            return False
        if self.is_open:
            self._not_before = now + _PROBE_S
        return True

    def note_success(self, now: float) -> bool:
        """Take in that a call went well; returns whether that closed the breaker."""
        self._failures = 0
        if not self.is_open:
            self._outcomes.append((now, True))
            return False
        self.is_open = False
        self._outcomes.clear()
        self._open_s = _OPEN_S
        return True

    def note_failure(self, now: float) -> bool:
        """Take in that a call failed; returns whether that opened the breaker, again or anew."""
        self._failures += 1
        self._outcomes.append((now, False))
        if self.is_open:
            if self._not_before - now > _PROBE_S:  # begun before it opened: nothing new
                return False
            self._open_s = min(2 * self._open_s, _OPEN_S_MAX)
        elif not self._is_sick(now):
            return False
        self.is_open = True
        self._not_before = now + self._open_s
        return True

    def _is_sick(self, now: float) -> bool:
        if self._failures >= _FAILURES_IN_A_ROW:
            return True
        recent = [is_good for when, is_good in self._outcomes if now - when <= _WINDOW_S]
        return len(recent) >= _OUTCOMES_MIN and recent.count(False) >= _FAILED_SHARE * len(recent)
