"""Fixed clocks and seeded randomness."""

from __future__ import annotations

import time

from sandbox_service.frames import Determinism
from sandbox_service.worker.surroundings import FixedSurroundings, HostSurroundings

CLOCK_MAX = (1 << 63) - 1


def fixed(
    clock_ns: int = 1_000, seed: int = 1, execution: int = 1, fuel_used: int = 0
) -> FixedSurroundings:
    determinism = Determinism(clock_ns=clock_ns, seed=seed)
    return FixedSurroundings(determinism, execution, lambda: fuel_used)


def test_all_clocks_show_what_the_code_did() -> None:
    surroundings = fixed(clock_ns=1_000, fuel_used=234)

    assert [surroundings.clock_ns(clock) for clock in range(4)] == [1_234] * 4


def test_a_sleep_moves_the_clocks_and_takes_no_time() -> None:
    surroundings = fixed(clock_ns=0)

    assert surroundings.sleep(1.5) == 0
    assert surroundings.sleep(0.5) == 0
    assert surroundings.clock_ns(0) == 2_000_000_000


def test_a_clock_stands_still_at_its_end() -> None:
    """A frame has no room for a later time."""
    surroundings = fixed(clock_ns=CLOCK_MAX - 10)

    surroundings.sleep(1e12)

    assert surroundings.clock_ns(0) == CLOCK_MAX


def test_randomness_repeats_with_seed_and_execution() -> None:
    def drawn(**fields: int) -> tuple[bytes, bytes]:
        surroundings = fixed(**fields)
        return surroundings.random_bytes(16), surroundings.random_bytes(16)

    assert drawn(seed=3, execution=2) == drawn(seed=3, execution=2)
    assert len({drawn(seed=3), drawn(seed=-3), drawn(seed=3, execution=2)}) == 3
    assert len(set(drawn())) == 2


def test_randomness_comes_in_any_size() -> None:
    assert [len(fixed().random_bytes(size)) for size in (0, 1, 1 << 20)] == [0, 1, 1 << 20]


def test_the_hosts_own_are_the_hosts_own() -> None:
    host = HostSurroundings()

    assert abs(host.clock_ns(0) - time.time_ns()) < 60 * 10**9
    assert abs(host.clock_ns(1) - time.monotonic_ns()) < 60 * 10**9
    assert host.random_bytes(16) != host.random_bytes(16)
    assert host.sleep(1.5) == 1.5
