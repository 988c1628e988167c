"""Processor time in a worker, handed round between the guests that run.

Only as many guests run at a time as there are processors, each until the next tick where
others wait. So each gets an equal share, and a thread that holds the interpreter's lock is
hardly ever one that the kernel has put aside for others.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

_FIRST_TICKS = 3
"""An execution has its place for so many ticks before it passes it on for the first time: most
are over by then, and need not wait for all that run for longer."""


class Turns:
    """The places to run at, and who waits for one."""

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._free = places
        self._waiting: deque[Turn] = deque()

    def take(self, turn: Turn, *, is_first: bool) -> None:
        """Wait for a place; with `is_first`, before those that wait already."""
        with self._lock:
            if self._free > 0 or turn.is_hurried:
                self._free -= 1
                return
            turn.granted.clear()
            if is_first:
                self._waiting.appendleft(turn)
            else:
                self._waiting.append(turn)
        turn.granted.wait()

    def give(self) -> None:
        """Give a place to the next that waits."""
        with self._lock:
            if self._waiting and self._free >= 0:
                self._waiting.popleft().granted.set()
            else:
                self._free += 1

    def hurry(self, turn: Turn) -> None:
        """Let a turn wait no longer, be it beyond the number of places."""
        with self._lock:
            turn.is_hurried = True
            if turn in self._waiting:
                self._waiting.remove(turn)
                self._free -= 1
                turn.granted.set()

    @property
    def waiting_count(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)


class Turn:
    """One guest's share; used by its thread, but for `hurry`, which any thread may call."""

    def __init__(self, turns: Turns) -> None:
        self.granted = threading.Event()
        """Set when a wait for a place is over."""
        self.is_hurried = False
        """Whether it is to come to its end, and waits for nobody."""
        self._turns = turns
        self._ticks_left = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have a place for as long as the block lasts, before those that run for longer."""
        self._turns.take(self, is_first=True)
        self._ticks_left = _FIRST_TICKS
        try:
            yield
        finally:
            self._turns.give()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Leave the place to others for as long as the block waits for something."""
        self._turns.give()
        try:
            yield
        finally:
            self._turns.take(self, is_first=True)

    def on_tick(self) -> None:
        """Let those that wait go first, if it has had its time."""
        self._ticks_left -= 1
        if self._ticks_left <= 0 and self._turns.waiting_count:
            self._turns.give()
            self._turns.take(self, is_first=False)
            self._ticks_left = 1

    def hurry(self) -> None:
        """Wait for a place no longer, to come to an end."""
        self._turns.hurry(self)
