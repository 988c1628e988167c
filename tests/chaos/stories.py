"""What clients do in a storm: one asks and waits, one talks, one forks a run while it works, one
calls its run off, one uploads first. Each does the same in every storm, whatever is killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Awaitable, Callable

import grpc
from fathom.orchestrator.v1 import conversation_service_pb2 as talk_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1 import orchestrator_service_pb2_grpc as rpc
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.conversation_service_pb2 import Conversation
from fathom.orchestrator.v1.conversation_service_pb2_grpc import ConversationServiceStub
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec
from fathom_client.errors import UnavailableError
from fathom_client.uploads import InputFile, Upload, upload

from tests.chaos import scripts
from tests.chaos.followed_run import FollowedRun
from tests.chaos.marks import Mark

COST_USD_NANOS_MAX = 2_000_000_000
"""What no run may pass."""
_TIME_S = 3_600
_SUB_CALLS_MAX = 20_000
_TIMEOUT_S = 10.0
_PATIENCE_S = 600.0
_CANCEL_AFTER_S = 2.0
"""How long a run goes on after it has children, at most, before it is called off."""
_FORKED_AFTER_TURN = 1
_KINDS = (
    *("draws", "tree", "orders", "talk", "forked"),
    *("cancelled", "big", "typed", "cited", "uploaded"),
)
"""What clients do, in turn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """Contexts that all clients share."""

    note: str
    """Of most runs."""
    big: str
    """That sessions have by reference."""
    letters: str
    """Of documents."""


class Client:
    """One client; it does one thing after the other."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        material: Material,
        chance: random.Random,
        runs: list[FollowedRun],
    ) -> None:
        """`runs` takes what it begins."""
        self._stub: rpc.OrchestratorServiceAsyncStub = rpc.OrchestratorServiceStub(channel)
        self._talks = ConversationServiceStub(channel)
        self._address = address
        self._material = material
        self._chance = chance
        self._runs = runs

    async def live(self, number: int) -> None:
        """Do what is the turn of a number, which no other has, to its end."""
        kind = _KINDS[number % len(_KINDS)]
        stories: dict[str, Callable[[Mark], Awaitable[None]]] = {
            "talk": self._talk,
            "forked": self._fork,
            "cancelled": self._cancel,
            "uploaded": self._upload,
        }
        await stories.get(kind, self._ask)(Mark(kind, number))

    async def _ask(self, mark: Mark) -> None:
        await self._create(self._begin(mark), self._spec(mark))

    async def _talk(self, mark: Mark) -> None:
        first = self._begin(mark)
        request = talk_pb.CreateConversationRequest(
            conversation=Conversation(context=self._material.note), request_id=str(mark)
        )
        made = await first.persist(
            lambda: self._talks.CreateConversation(request, timeout=_TIMEOUT_S)
        )
        spec = self._spec(mark)
        spec.conversation = made.conversation.name
        await self._create(first, spec)
        second = self._begin(Mark("talked", mark.number), before=first)
        spec.question = second.mark.question
        await self._create(second, spec)

    async def _fork(self, mark: Mark) -> None:
        origin = self._begin(Mark("draws", mark.number))
        is_late = self._chance.random() < 0.5
        turn = len(scripts.SCRIPTS["draws"].cells) if is_late else _FORKED_AFTER_TURN + 1
        await self._create(origin, self._spec(origin.mark), until=lambda event: event.turn >= turn)
        run = self._begin(mark, before=origin)
        request = pb.ForkRunRequest(
            name=origin.name,
            after_turn=_FORKED_AFTER_TURN,
            changes=RunSpec(question=mark.question),
            request_id=str(mark),
        )

        async def fork() -> Run:
            return (await self._stub.ForkRun(request, timeout=_TIMEOUT_S)).run

        await run.create(fork)
        await asyncio.gather(
            *(each.follow(self._stub, self._chance) for each in (origin, run)),
        )

    async def _cancel(self, mark: Mark) -> None:
        run = self._begin(mark)
        await self._create(run, self._spec(mark), until=_has_child)
        await asyncio.sleep(self._chance.uniform(0, _CANCEL_AFTER_S))
        request = pb.CancelRunRequest(name=run.name)
        await run.persist(lambda: self._stub.CancelRun(request, timeout=_TIMEOUT_S))
        await run.follow(self._stub, self._chance)

    async def _upload(self, mark: Mark) -> None:
        run = self._begin(mark)
        data = scripts.uploaded_text(mark).encode()
        file = InputFile(name=str(mark), size_bytes=len(data), data=data)
        source = Upload(kind=Context.KIND_TEXT, files=(file,), title=str(mark))
        while True:
            try:
                stored = await upload(self._address, source, patience_s=_PATIENCE_S)
                break
            except UnavailableError:
                # Nothing of it was ever sent, so there is nothing to go on with.
                await asyncio.sleep(_CANCEL_AFTER_S)
        spec = self._spec(mark)
        spec.context = stored.context.name
        await self._create(run, spec)

    def _begin(self, mark: Mark, before: FollowedRun | None = None) -> FollowedRun:
        run = FollowedRun(mark, before)
        self._runs.append(run)
        return run

    async def _create(
        self,
        run: FollowedRun,
        spec: RunSpec,
        until: Callable[[RunEvent], bool] | None = None,
    ) -> None:
        request = pb.CreateRunRequest(spec=spec, request_id=str(run.mark))

        async def create() -> Run:
            return (await self._stub.CreateRun(request, timeout=_TIMEOUT_S)).run

        await run.create(create)
        if until is None:
            await run.follow(self._stub, self._chance)
        else:
            await run.follow(self._stub, self._chance, until)

    def _spec(self, mark: Mark) -> RunSpec:
        limits = Limits(
            depth_max=2, cost_usd_nanos_max=COST_USD_NANOS_MAX, sub_calls_max=_SUB_CALLS_MAX
        )
        limits.time_max.FromSeconds(_TIME_S)
        spec = RunSpec(question=mark.question, context=self._material.note, limits=limits)
        if mark.kind == "orders":
            spec.profile = scripts.PROFILE
        elif mark.kind == "typed":
            spec.answer_schema_json = json.dumps(scripts.TYPED)
        elif mark.kind == "cited":
            spec.context = self._material.letters
        elif mark.kind == "big":
            spec.context = self._material.big
        return spec


async def stored_material(address: str) -> Material:
    """Store the contexts that all clients share."""

    async def stored(kind: Context.Kind.ValueType, texts: dict[str, str]) -> str:
        files = tuple(
            InputFile(name=name, size_bytes=len(text.encode()), data=text.encode())
            for name, text in texts.items()
        )
        source = Upload(kind=kind, files=files, title="chaos")
        return (await upload(address, source)).context.name

    return Material(
        note=await stored(Context.KIND_TEXT, {"note": scripts.NOTE}),
        big=await stored(Context.KIND_TEXT, {"big": scripts.BIG}),
        letters=await stored(Context.KIND_DOCUMENTS, scripts.LETTERS),
    )


def _has_child(event: RunEvent) -> bool:
    return event.HasField("child_run_changed")
