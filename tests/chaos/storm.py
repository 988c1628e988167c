"""The storm itself: many runs at a time, and under them one kill after the other, and orchestrators
that stand still, in the order that a seed gives; then calm, and a reckoning.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.processes import worker_pids
from common.channel import open_channel
from tests.chaos.books import Books, Findings
from tests.chaos.followed_run import FollowedRun
from tests.chaos.leaks import (
    Process,
    descendants,
    left_in_folders,
    left_in_sandbox,
    left_in_valkey,
    left_of_steps,
    process,
)
from tests.chaos.place import LEASE_S, Place, PlaceOptions, Service, open_place
from tests.chaos.stories import Client, Material, stored_material
from tests.support.eventually import eventually

_PROCESSES = {"orchestrator": 6, "gateway": 5, "worker": 4, "sandbox": 3}
_WEIGHTS = _PROCESSES | {"postgres": 3, "valkey": 2, "s3": 2}
"""How often each kind is killed, in proportion."""
_FREEZE = "freeze"
_FREEZE_LEASES = (1.3, 2.5)
"""How many leases an orchestrator stands still, so that others have its runs once it goes on."""
_CALM_S = 120.0
"""How long all runs may take to end after the last kill."""
_REST_S = 60.0
"""How long it may take until nothing is kept for them."""
_LOOK_S = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StormOptions:
    """What storm."""

    kills: int
    """Processes that are killed."""
    freezes: int = 0
    """How often an orchestrator stands still for longer than its lease, among the kills."""
    seed: int
    """Gives victims, pauses, and when watchers hang up."""
    place: PlaceOptions = dataclasses.field(default_factory=PlaceOptions)
    """What the services keep their state in."""
    clients: int = 50
    """How many clients there are, each with a run or two at a time."""
    pause_s: tuple[float, float] = (0.3, 3.0)
    """From one kill to the next, at least and at most."""
    is_told: bool = False
    """Tell on standard error what happens."""


@dataclasses.dataclass
class Report:
    """What came of it."""

    options: StormOptions
    """What was asked for."""
    kills: Counter[str] = dataclasses.field(default_factory=Counter)
    """Kills by kind."""
    freezes: int = 0
    """Times that an orchestrator stood still."""
    runs: int = 0
    """Runs that were made."""
    returns: int = 0
    """How often clients had to call again."""
    took_s: float = 0.0
    """From the first run to the end of the last."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """Runs without the answer of an undisturbed run, and services that nobody killed and are
    gone."""
    findings: Findings = dataclasses.field(default_factory=Findings)
    """What the books say."""
    orders: int = 0
    """Calls of the operator's tool, repeats included."""

    @property
    def figures(self) -> dict[str, int]:
        """What is counted, by its name."""
        found = self.findings
        return {
            "chaos_kills": self.kills.total(),
            "chaos_freezes": self.freezes,
            "chaos_runs": self.runs,
            "chaos_wrong": len(self.wrong),
            "chaos_events_lost": len(found.events_lost),
            "chaos_events_doubled": len(found.events_doubled),
            "chaos_paid_twice": len(found.paid_twice),
            "chaos_spend_wrong": len(found.spend_wrong),
            "chaos_leaked": len(found.leaked),
        }

    @property
    def faults(self) -> list[str]:
        """All that does not hold, in words."""
        found = self.findings
        lists = (self.wrong, found.events_lost, found.events_doubled, found.paid_twice)
        return [each for faults in (*lists, found.spend_wrong, found.leaked) for each in faults]


async def storm(folder: Path, options: StormOptions) -> Report:
    """Raise a storm over processes that keep their state and their logs in a folder, and return
    what came of it. The events and accounts of runs that went wrong are left there too."""
    async with open_place(folder, options.place) as place:
        raised = _Storm(place, folder, options)
        report = await raised.blow()
        raised.note_processes()
    report.findings.leaked += raised.left_behind()
    return report


class _Storm:
    def __init__(self, place: Place, folder: Path, options: StormOptions) -> None:
        self._place = place
        self._folder = folder
        self._options = options
        self._chance = random.Random(options.seed)
        self._runs: list[FollowedRun] = []
        self._numbers = itertools.count()
        self._processes: set[Process] = set()
        self._is_over = False
        self._report = Report(options)
        self._returns: dict[str, asyncio.Task[None]] = {}
        self._started_s = time.monotonic()

    async def blow(self) -> Report:
        report = self._report
        material = await stored_material(self._place.doors["orchestrator"].address)
        clients = [
            asyncio.create_task(self._client(material)) for _ in range(self._options.clients)
        ]
        try:
            await self._kill_all()
            self._tell("calm")
            _, late = await asyncio.wait(clients, timeout=_CALM_S)
            self._tell(f"{len(late)} clients still wait")
            report.wrong += [f"a client waits: {_where(client)}" for client in late]
        finally:
            for client in clients:
                client.cancel()
        ends = await asyncio.gather(*clients, return_exceptions=True)
        report.took_s = time.monotonic() - self._started_s
        report.wrong += [f"a client gave up: {end!r}" for end in ends if isinstance(end, Exception)]
        self._look_at_runs()
        report.wrong += [
            f"{service.name} has ended by itself"
            for service in self._place.services
            if not service.is_alive
        ]
        await self._reckon()
        return report

    def note_processes(self) -> None:
        """Remember the processes that are there."""
        for service in self._place.services:
            self._note(service)

    def left_behind(self) -> list[str]:
        """Return what is there although all services have ended."""
        alive = [each for each in self._processes if each.is_alive]
        files = left_in_folders(self._place.objects, self._place.scratch)
        return [*(f"{each} lives" for each in alive), *files]

    async def _client(self, material: Material) -> None:
        """Do one thing after the other, as long as the storm lasts."""
        address = self._place.doors["orchestrator"].address
        async with open_channel(address) as channel:
            while not self._is_over:
                number = next(self._numbers)
                chance = random.Random(f"{self._options.seed} {number}")
                await Client(channel, address, material, chance, self._runs).live(number)

    async def _kill_all(self) -> None:
        for number, kind in enumerate(self._schedule()):
            if self._is_alone:
                await self._all_up()
            await asyncio.sleep(self._chance.uniform(*self._options.pause_s))
            if kind == _FREEZE:
                await self._freeze(self._chance.random())
                self._report.freezes += 1
            else:
                await self._kill(kind, self._chance.random())
                self._report.kills[kind] += 1
            ended = sum(1 for run in self._runs if run.ended.name)
            self._tell(f"blow {number + 1}: {kind}; {ended} of {len(self._runs)} runs have ended")
        self._is_over = True
        await self._all_up()

    @property
    def _is_alone(self) -> bool:
        """Whether there is one service of each kind: with one away, nothing goes on."""
        return len(self._place.services) == len(self._place.doors)

    def _schedule(self) -> list[str]:
        """Return what kinds are killed: each once at least, the others by their weights; and the
        freezes among them."""
        kinds = [kind for kind in _WEIGHTS if kind in {*_PROCESSES, *self._place.servers}]
        weights = [_WEIGHTS[kind] for kind in kinds]
        more = max(self._options.kills - len(kinds), 0)
        schedule = [*kinds, *self._chance.choices(kinds, weights, k=more)]
        self._chance.shuffle(schedule)
        schedule = [*schedule[: self._options.kills], *[_FREEZE] * self._options.freezes]
        self._chance.shuffle(schedule)
        return schedule

    async def _kill(self, kind: str, choice: float) -> None:
        """Kill one of a kind and have it start again; `choice`, below 1, says which one."""
        if kind in self._place.servers:
            server = self._place.servers[kind]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            return
        services = self._place.of_kind("sandbox" if kind == "worker" else kind)
        service = services[int(choice * len(services))]
        await self._up(service)
        if kind == "worker":
            workers = worker_pids(service.pid)
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(workers[int(choice * len(workers))], signal.SIGKILL)
            return
        self._note(service)
        await service.kill()
        self._returns[service.name] = asyncio.create_task(service.start())

    async def _freeze(self, choice: float) -> None:
        """Have an orchestrator stand still and go on later, as one whose machine was asleep."""
        services = self._place.of_kind("orchestrator")
        service = services[int(choice * len(services))]
        await self._up(service)
        lasts_s = LEASE_S * self._chance.uniform(*_FREEZE_LEASES)
        os.kill(service.pid, signal.SIGSTOP)
        self._returns[service.name] = asyncio.create_task(_thaw(service.pid, lasts_s))

    def _note(self, service: Service) -> None:
        own = process(service.pid)
        self._processes.update([own] if own else [], descendants(service.pid))

    async def _up(self, service: Service) -> None:
        """Wait until a service has come back."""
        returning = self._returns.pop(service.name, None)
        if returning is not None:
            await returning

    async def _all_up(self) -> None:
        for service in self._place.services:
            await self._up(service)

    def _look_at_runs(self) -> None:
        report = self._report
        report.runs = len(self._runs)
        report.returns = sum(run.returns for run in self._runs)
        for number, run in enumerate(self._runs):
            if run.wrong:
                report.wrong.append(run.wrong)
                path = self._folder / f"wrong-{number}.events"
                path.write_text("\n".join(map(str, run.events)))

    async def _reckon(self) -> None:
        """Look at what is left, once there was time to tidy up."""
        findings, place = self._report.findings, self._place
        books = Books(place.orchestrator_url, place.gateway_url)
        try:
            async with open_channel(place.doors["sandbox"].address) as channel:

                async def is_tidy() -> bool:
                    findings.leaked = [*books.leaks(), *await left_in_sandbox(channel)]
                    findings.leaked += left_of_steps(place.orchestrator_url)
                    if place.accounts != "database":
                        findings.leaked += left_in_valkey(place.accounts)
                    return not findings.leaked

                with contextlib.suppress(AssertionError):
                    await eventually(is_tidy, within_s=_REST_S, every_s=_LOOK_S)
            books.check(self._runs, place.models, place.orders, findings)
            for run in self._runs:
                if any(run.name in words for words in findings.spend_wrong):
                    path = self._folder / f"{run.name.removeprefix('runs/')}.account"
                    path.write_text(books.account(run))
            findings.paid_twice += [
                f"{call} came with different contents" for call in place.models.changed
            ]
            self._report.orders = place.orders.calls
        finally:
            books.close()

    def _tell(self, words: str) -> None:
        if self._options.is_told:
            at_s = time.monotonic() - self._started_s
            print(f"{at_s:7.1f} s  {words}", file=sys.stderr, flush=True)


def _where(task: asyncio.Task[None]) -> str:
    """Return where a task waits, outermost first."""
    frames: list[str] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None)
        if frame is not None:
            frames.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        waiting = getattr(waiting, "cr_await", None)
    return " > ".join(frames)


async def _thaw(pid: int, after_s: float) -> None:
    try:
        await asyncio.sleep(after_s)
    finally:
        os.kill(pid, signal.SIGCONT)
