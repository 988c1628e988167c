"""The storm itself: many runs at a time, and one kill after the other under them, in the order that
a seed gives, until so many were made; then calm, and a reckoning.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from fathom.orchestrator.v1 import context_service_pb2 as context_pb
from fathom.orchestrator.v1 import context_service_pb2_grpc as context_rpc
from fathom.orchestrator.v1.context_pb2 import Context

from bench.processes import worker_pids
from common.channel import open_channel
from tests.chaos.books import Books, Findings, sessions
from tests.chaos.followed_run import FollowedRun
from tests.chaos.place import Place, Service, open_place
from tests.support.eventually import eventually

_WEIGHTS = {"orchestrator": 6, "gateway": 5, "worker": 4, "sandbox": 3, "postgres": 3}
"""How often each kind is killed, in proportion."""
_CALM_S = 120.0
"""How long all runs may take to end after the last kill."""
_REST_S = 30.0
"""How long it may take until nothing is kept for them."""
_LOOK_S = 0.1
_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StormOptions:
    """What storm."""

    kills: int
    """Processes that are killed."""
    seed: int
    """Gives victims, pauses, and when watchers hang up."""
    database: str = "postgresql"
    """`postgresql` or `sqlite`."""
    concurrent: int = 50
    """Runs at a time."""
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

    @property
    def figures(self) -> dict[str, int]:
        """What is counted, by its name."""
        found = self.findings
        return {
            "chaos_kills": self.kills.total(),
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
    what came of it. The events of runs that went wrong are left there too."""
    async with open_place(
        folder, database=options.database, concurrent=options.concurrent
    ) as place:
        return await _Storm(place, folder, options).blow()


class _Storm:
    def __init__(self, place: Place, folder: Path, options: StormOptions) -> None:
        self._place = place
        self._folder = folder
        self._options = options
        self._chance = random.Random(options.seed)
        self._runs: list[FollowedRun] = []
        self._is_over = False
        self._report = Report(options)
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._started_s = time.monotonic()

    async def blow(self) -> Report:
        report = self._report
        async with open_channel(self._place.doors["orchestrator"].address) as channel:
            context = await _upload(context_rpc.ContextServiceStub(channel))
        clients = [
            asyncio.create_task(self._client(context, number))
            for number in range(self._options.concurrent)
        ]
        try:
            await self._kill_all()
            self._tell("calm")
            _, late = await asyncio.wait(clients, timeout=_CALM_S)
            self._tell(f"{len(late)} clients still wait")
        finally:
            for client in clients:
                client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        report.took_s = time.monotonic() - self._started_s
        report.runs = len(self._runs)
        report.returns = sum(run.returns for run in self._runs)
        report.wrong = [wrong for run in self._runs if (wrong := run.wrong)]
        report.wrong += [
            f"{service.name} has ended by itself"
            for service in self._place.services
            if not service.is_alive
        ]
        for run in self._runs:
            if run.wrong:
                path = self._folder / f"wrong-{run.number}.events"
                path.write_text("\n".join(map(str, run.events)))
        await self._reckon()
        return report

    async def _client(self, context: str, number: int) -> None:
        """Have a run, and another one after it, as long as the storm lasts."""
        chance = random.Random(f"{self._options.seed} {number}")
        async with open_channel(self._place.doors["orchestrator"].address) as channel:
            while True:
                run = FollowedRun(len(self._runs), context)
                self._runs.append(run)
                await run.live(channel, chance)
                if self._is_over:
                    return

    async def _kill_all(self) -> None:
        kinds = [kind for kind in _WEIGHTS if kind != "postgres" or self._place.postgres]
        for number in range(self._options.kills):
            await asyncio.sleep(self._chance.uniform(*self._options.pause_s))
            kind = self._chance.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
            choice = self._chance.random()
            await self._kill(kind, choice)
            self._report.kills[kind] += 1
            ended = sum(1 for run in self._runs if run.ended.name)
            self._tell(f"kill {number + 1}: {kind}; {ended} of {len(self._runs)} runs have ended")
        self._is_over = True
        for restart in list(self._restarts.values()):
            await restart

    async def _kill(self, kind: str, choice: float) -> None:
        """Kill one of a kind and have it start again; `choice`, below 1, says which one."""
        if kind == "postgres":
            postgres = self._place.postgres
            assert postgres is not None
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.start)
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
        await service.kill()
        self._restarts[service.name] = asyncio.create_task(service.start())

    async def _up(self, service: Service) -> None:
        """Wait until a service has come back."""
        restart = self._restarts.pop(service.name, None)
        if restart is not None:
            await restart

    async def _reckon(self) -> None:
        """Look at what is left, once there was time to tidy up."""
        findings = self._report.findings
        books = Books(self._place.orchestrator_url, self._place.gateway_url)
        try:
            async with open_channel(self._place.doors["sandbox"].address) as channel:

                async def is_tidy() -> bool:
                    findings.leaked = books.leaks() + await sessions(channel)
                    return not findings.leaked

                with contextlib.suppress(AssertionError):
                    await eventually(is_tidy, within_s=_REST_S, every_s=_LOOK_S)
            books.check(self._runs, self._place.models, findings)
            findings.paid_twice += [
                f"{call} came with different contents" for call in self._place.models.changed
            ]
        finally:
            books.close()

    def _tell(self, words: str) -> None:
        if self._options.is_told:
            at_s = time.monotonic() - self._started_s
            print(f"{at_s:7.1f} s  {words}", file=sys.stderr, flush=True)


async def _upload(stub: context_rpc.ContextServiceAsyncStub) -> str:
    """Store a small text and return its name."""
    messages = [
        context_pb.UploadContextRequest(
            start=context_pb.UploadStart(kind=Context.KIND_TEXT, title="chaos")
        ),
        context_pb.UploadContextRequest(
            chunk=context_pb.UploadChunk(data=b"Little is known of it.\n" * 100)
        ),
    ]
    response = await stub.UploadContext(iter(messages), timeout=_TIMEOUT_S)
    return str(response.context.name)
