"""Requests and tokens a minute that a deployment is given at most, spread over the minute: the
generic cell rate algorithm, which keeps one time for each limit.

What is known of a request when it begins is counted then, the rest when it has ended: only its
answer can go over the limit, and those who come later wait that off.
"""

from __future__ import annotations

import math

_MINUTE_S = 60.0
_BURST_S = 6.0
"""So much of a minute's worth may come at once."""


class _Rate:
    """One limit: when the last thing that was counted would be due, were all spread evenly."""

    def __init__(self, per_minute: int) -> None:
        # Slower by the burst, so that no minute has more than it may.
        self._interval_s = (_MINUTE_S + _BURST_S) / per_minute
        self._due = -math.inf

    def wait_s(self, amount: int, now: float) -> float:
        """Return how long `amount` beyond the one that is always let through at its turn waits."""
        # What is larger than a burst waits for as much silence before it. What is larger than a
        # minute's worth, which never fits, waits for a whole silent minute.
        worth_s = min(amount * self._interval_s, _MINUTE_S + _BURST_S)
        return max(self._due + worth_s - _BURST_S - now, 0.0)

    def count(self, amount: int, now: float) -> None:
        due = max(self._due, now) + amount * self._interval_s
        # What comes back shortens waits; it is no silence that a large one may take for its own.
        self._due = max(due, min(self._due, now))


class Pace:
    """The limits of one deployment. Times are of one clock, in seconds."""

    def __init__(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        """0 is no limit."""
        self.limits = (requests_per_minute, tokens_per_minute)
        """As given."""
        self._requests = _Rate(requests_per_minute) if requests_per_minute else None
        self._tokens = _Rate(tokens_per_minute) if tokens_per_minute else None

    def wait_s(self, tokens: int, now: float) -> float:
        """Return the seconds until one more request, of probably so many tokens, may begin; 0
        where it may now."""
        requests_s = 0.0 if self._requests is None else self._requests.wait_s(0, now)
        tokens_s = 0.0 if self._tokens is None else self._tokens.wait_s(tokens, now)
        return max(requests_s, tokens_s)

    def begin(self, tokens: int, now: float) -> None:
        """Count a request of probably so many tokens, which begins at `now` or is to begin then;
        those who come later wait for it."""
        if self._requests is not None:
            self._requests.count(1, now)
        self.correct(tokens, now)

    def correct(self, tokens: int, now: float) -> None:
        """Count what a request took beyond what was thought; less than nothing gives back."""
        if self._tokens is not None:
            self._tokens.count(tokens, now)
