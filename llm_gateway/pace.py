"""Requests and tokens a minute that a deployment is given at most, spread over the minute: the
generic cell rate algorithm, which keeps one time for each limit.

What is known of a request when it begins is counted then, the rest when it has ended.
"""

from __future__ import annotations

_MINUTE_S = 60.0
_BURST_S = 6.0
"""So much of a minute's worth may come at once."""


class _Rate:
    """One limit: when the last thing that was counted would be due, were all spread evenly."""

    def __init__(self, per_minute: int) -> None:
        # Slower by the burst, so that no minute has more than it may.
        self._interval_s = (_MINUTE_S + _BURST_S) / per_minute
        self._due = 0.0

    def wait_s(self, now: float) -> float:
        return max(self._due - _BURST_S - now, 0.0)

    def count(self, amount: int, now: float) -> None:
        self._due = max(self._due, now) + amount * self._interval_s


class Pace:
    """The limits of one deployment. Times are of one clock, in seconds."""

    def __init__(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        """0 is no limit."""
        self.limits = (requests_per_minute, tokens_per_minute)
        """As given."""
        self._requests = _Rate(requests_per_minute) if requests_per_minute else None
        self._tokens = _Rate(tokens_per_minute) if tokens_per_minute else None

    def wait_s(self, now: float) -> float:
        """Return the seconds until one more request may begin, 0 where it may now."""
        rates = (self._requests, self._tokens)
        return max((rate.wait_s(now) for rate in rates if rate is not None), default=0.0)

    def begin(self, tokens: int, now: float) -> None:
        """Count a request of probably so many tokens; those who come later wait for it."""
        if self._requests is not None:
            self._requests.count(1, now)
        self.correct(tokens, now)

    def correct(self, tokens: int, now: float) -> None:
        """Count what a request took beyond what was thought; less than nothing gives back."""
        if self._tokens is not None:
            self._tokens.count(tokens, now)
