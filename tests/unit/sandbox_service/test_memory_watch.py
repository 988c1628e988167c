"""What is done when the sessions take more memory than they may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from sandbox_service import host_memory
from sandbox_service.errors import CapacityError
from sandbox_service.memory_watch import MemoryGauge, MemoryWatch
from sandbox_service.session_telemetry import SessionTelemetry


class FakeSession:
    """A session that takes memory and can be stopped."""

    def __init__(self, name: str, memory_bytes: int, *, is_busy: bool = False) -> None:
        self.name = name
        self.memory_bytes = memory_bytes
        self.is_busy = is_busy
        self.is_stopped = False

    async def stop_for_memory(self) -> None:
        self.is_stopped = True


class FakeSessions:
    """Sessions in the order of their last use."""

    def __init__(self, *sessions: FakeSession) -> None:
        self.sessions = list(sessions)
        self.evicted: list[str] = []
        self.has_greedy_worker = False

    def memory_bytes(self) -> int:
        return sum(session.memory_bytes for session in self.sessions)

    def idle_sessions(self) -> list[FakeSession]:
        return [session for session in self.sessions if not session.is_busy]

    def busy_sessions(self) -> list[FakeSession]:
        return [session for session in self.sessions if session.is_busy]

    async def evict(self, session: FakeSession) -> None:
        self.sessions.remove(session)
        self.evicted.append(session.name)

    def end_greedy_worker(self) -> bool:
        was_greedy, self.has_greedy_worker = self.has_greedy_worker, False
        return was_greedy


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def watch(sessions: FakeSessions, bytes_max: int) -> tuple[MemoryWatch[FakeSession], MemoryGauge]:
    gauge = MemoryGauge(bytes_max)
    return MemoryWatch(sessions, gauge, Clock()), gauge


async def test_nothing_is_evicted_within_the_bound() -> None:
    sessions = FakeSessions(FakeSession("a", 50), FakeSession("b", 50))
    watching, gauge = watch(sessions, 100)

    await watching.look()

    assert not sessions.evicted
    assert gauge.bytes_used == 100
    gauge.require_room()


async def test_the_sessions_unused_for_longest_go_first_and_no_more_than_needed() -> None:
    sessions = FakeSessions(*[FakeSession(name, 50) for name in "abc"])
    watching, gauge = watch(sessions, 100)

    await watching.look()

    assert sessions.evicted == ["a"]
    assert gauge.bytes_used == 100
    gauge.require_room()


async def test_a_busy_session_is_not_evicted() -> None:
    sessions = FakeSessions(FakeSession("a", 90, is_busy=True), FakeSession("b", 20))
    watching, _ = watch(sessions, 100)

    await watching.look()

    assert sessions.evicted == ["b"]


async def test_new_sessions_are_refused_only_where_evicting_does_not_help() -> None:
    busy = FakeSession("a", 101, is_busy=True)
    watching, gauge = watch(FakeSessions(busy), 100)

    await watching.look()
    with pytest.raises(CapacityError, match="101 of 100 bytes"):
        gauge.require_room()

    busy.memory_bytes = 100
    await watching.look()
    gauge.require_room()


async def test_the_largest_busy_session_is_stopped_when_memory_stays_short() -> None:
    """Not at the first look: what was evicted just then takes a moment to be given back."""
    small, large = (FakeSession(str(size), size, is_busy=True) for size in (60, 70))
    clock = Clock()
    watching = MemoryWatch(FakeSessions(small, large), MemoryGauge(100), clock)

    await watching.look()
    clock.now_s = 2.0
    await watching.look()
    assert not large.is_stopped

    clock.now_s = 2.1
    await watching.look()
    assert large.is_stopped
    assert not small.is_stopped


async def test_a_greedy_worker_is_ended_before_any_cell_is_stopped() -> None:
    """What it took is no session's fault."""
    session = FakeSession("a", 101, is_busy=True)
    sessions, clock = FakeSessions(session), Clock()
    sessions.has_greedy_worker = True
    watching = MemoryWatch(sessions, MemoryGauge(100), clock)

    for clock.now_s in (0.0, 3.0):
        await watching.look()
    assert not sessions.has_greedy_worker
    assert not session.is_stopped

    for clock.now_s in (3.25, 6.0):
        await watching.look()
    assert session.is_stopped


async def test_the_next_is_stopped_only_after_another_wait() -> None:
    sessions = [FakeSession(str(size), size, is_busy=True) for size in (60, 70)]
    clock = Clock()
    watching = MemoryWatch(FakeSessions(*sessions), MemoryGauge(100), clock)

    for clock.now_s in (0.0, 3.0, 3.25, 4.0):
        await watching.look()

    assert [session.is_stopped for session in sessions] == [False, True]


async def test_a_short_while_above_the_bound_stops_nothing() -> None:
    session = FakeSession("a", 101, is_busy=True)
    clock = Clock()
    watching = MemoryWatch(FakeSessions(session), MemoryGauge(100), clock)

    for clock.now_s, session.memory_bytes in ((0.0, 101), (1.0, 99), (3.0, 101), (4.0, 101)):
        await watching.look()

    assert not session.is_stopped


async def test_memory_and_what_was_done_about_it_are_in_the_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("sandbox_service.session_telemetry.meter", provider.get_meter)
    sessions = FakeSessions(FakeSession("a", 50), FakeSession("b", 90, is_busy=True))
    watching, gauge = watch(sessions, 100)
    telemetry = SessionTelemetry(lambda: {"idle": 1, "busy": 1}, gauge)

    await watching.look()
    data: Any = reader.get_metrics_data()
    told = {
        (metric.name, *point.attributes.values()): point.value
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }

    assert told == {
        ("fathom.sandbox.sessions", "idle"): 1,
        ("fathom.sandbox.sessions", "busy"): 1,
        ("fathom.sandbox.memory", "used"): 90,
        ("fathom.sandbox.memory", "max"): 100,
        ("fathom.sandbox.memory.shortages", "evicted"): 1,
        ("fathom.sandbox.memory.shortages", "stopped"): 0,
    }
    del telemetry
    provider.shutdown()


def host(root: Path, total_kb: int, groups: str = "") -> Path:
    """Make the files that tell a host's memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:       {total_kb} kB\nMemFree: 1 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def test_without_a_control_group_the_hosts_memory_counts(tmp_path: Path) -> None:
    assert host_memory.memory_bytes(host(tmp_path, 1024)) == 1 << 20


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"": "max", "a": "500000", "a/b": "max"}, 500_000),
        ({"a": "500000", "a/b": "400000"}, 400_000),
        ({"a/b": "9999999999"}, 1 << 20),
        ({"c": "1000"}, 1 << 20),
    ],
)
def test_the_least_limit_above_our_control_group_counts(
    tmp_path: Path, limits: dict[str, str], expected: int
) -> None:
    root = host(tmp_path, 1024, "0::/a/b\n")
    for folder, text in limits.items():
        path = root / "sys/fs/cgroup" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.max").write_text(f"{text}\n")

    assert host_memory.memory_bytes(root) == expected


def test_control_groups_of_the_first_version_count(tmp_path: Path) -> None:
    root = host(tmp_path, 1024, "5:cpu,memory:/x\n0::/\n")
    path = root / "sys/fs/cgroup/memory/x"
    path.mkdir(parents=True)
    (path.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (path / "memory.limit_in_bytes").write_text("600000\n")

    assert host_memory.memory_bytes(root) == 600_000


def test_memory_of_processes_is_what_no_file_backs(tmp_path: Path) -> None:
    for pid, lines in ((7, "RssAnon:\t  10 kB\nRssFile:\t 90 kB\n"), (8, "State: Z\n")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/status").write_text(lines)

    assert host_memory.private_bytes([7, 8, 9], tmp_path) == 10 << 10
