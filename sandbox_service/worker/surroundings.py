"""What a guest can find out about its surroundings: the time, and randomness.

Either the host's own, or fixed ones under which the same code does the same, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable
from typing import Protocol

from sandbox_service.frames import Determinism

_REALTIME = 0
_CLOCK_NS_MAX = (1 << 63) - 1
_STREAM = struct.Struct("<qQQ")
"""Seed, execution and read: what one read of randomness is made from."""


class Surroundings(Protocol):
    """Time and randomness of one execution."""

    def clock_ns(self, clock: int) -> int:
        """Return what a clock of WASI's shows; 0 is the wall's, others only ever advance."""

    def random_bytes(self, size_bytes: int) -> bytes:
        """Return that many random bytes."""

    def sleep(self, duration_s: float) -> float:
        """Let a sleep pass on the clocks; return the part of it that takes real time."""


class HostSurroundings:
    """The host's own clocks and randomness."""

    def clock_ns(self, clock: int) -> int:
        """Return what the host's clock shows."""
        return time.time_ns() if clock == _REALTIME else time.monotonic_ns()

    def random_bytes(self, size_bytes: int) -> bytes:
        """Return randomness of the host's."""
        return os.urandom(size_bytes)

    def sleep(self, duration_s: float) -> float:
        """Sleep for real."""
        return duration_s


class FixedSurroundings:
    """Clocks that show what the code did, and randomness from a seed.

    Clocks advance by a nanosecond an instruction and by what is slept, which takes no time.
    Randomness begins anew with each execution, so that nothing but its number has to be kept.
    """

    def __init__(
        self, determinism: Determinism, execution: int, fuel_used: Callable[[], int]
    ) -> None:
        """Take what the clocks show at first, and what tells the instructions since then."""
        self._determinism = determinism
        self._execution = execution
        self._fuel_used = fuel_used
        self._slept_ns = 0
        self._reads = 0

    def clock_ns(self, clock: int) -> int:  # noqa: ARG002  # all clocks show the same
        """Return what every clock shows; it stands still at the end of 63 bits."""
        passed_ns = self._fuel_used() + self._slept_ns
        return min(self._determinism.clock_ns + passed_ns, _CLOCK_NS_MAX)

    def random_bytes(self, size_bytes: int) -> bytes:
        """Return the next bytes of the execution's own stream."""
        self._reads += 1
        origin = _STREAM.pack(self._determinism.seed, self._execution, self._reads)
        return hashlib.shake_256(origin).digest(size_bytes)

    def sleep(self, duration_s: float) -> float:
        """Move the clocks, and let no time pass."""
        self._slept_ns = min(self._slept_ns + int(duration_s * 1e9), _CLOCK_NS_MAX)
        return 0.0
