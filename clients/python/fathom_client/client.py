"""The client of an orchestrator: upload, ask, watch, cancel, look up.

A thin, typed shell around the generated stubs; every call has a deadline, and every failure is a
`CallError`. Nothing here prints, reads the environment or starts processes.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Self

from fathom.orchestrator.v1 import (
    context_pb2,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
    run_event_pb2,
    run_pb2,
)

from fathom_client import uploads, watching
from fathom_client.access import Access
from fathom_client.calls import answer_of
from fathom_client.channel import open_channel
from fathom_client.contexts import Contexts
from fathom_client.conversations import Conversations
from fathom_client.limits import Limits
from fathom_client.profiles import Profiles
from fathom_client.results import Result

_TIMEOUT_S = 30.0


class Client:
    """A connection to one orchestrator; use it as an asynchronous context manager."""

    def __init__(self, address: str, *, access: Access | None = None, api_key: str = "") -> None:
        """Prepare a connection to `host:port`, or over TLS to `https://host:port`; it is made with
        the first call. `access` says what to show and whom to trust; where an API key is all there
        is to show, `api_key` alone will do. Raises AccessError for what cannot be used."""
        self._address = address
        self._access = access or Access(api_key=api_key)
        self._channel = open_channel(address, self._access)
        self._orchestrator: orchestrator_service_pb2_grpc.OrchestratorServiceAsyncStub = (
            orchestrator_service_pb2_grpc.OrchestratorServiceStub(self._channel)
        )

    @property
    def contexts(self) -> Contexts:
        """Contexts: the data that runs read."""
        return Contexts(self._channel)

    @property
    def profiles(self) -> Profiles:
        """Profiles: what an operator has decided for runs of one kind."""
        return Profiles(self._channel)

    @property
    def conversations(self) -> Conversations:
        """Conversations: sessions that several runs use in turn."""
        return Conversations(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way fail."""
        await self._channel.close()

    async def upload(
        self, source: uploads.Upload, *, on_progress: Callable[[int], None] | None = None
    ) -> context_pb2.Context:
        """Store files as a context; the same bytes twice are one context.

        `on_progress` gets the bytes sent so far. Raises InputChangedError, OSError or CallError.
        """
        response = await uploads.upload(
            self._address, source, access=self._access, on_progress=on_progress
        )
        return response.context

    async def create(
        self,
        question: str,
        context: str,
        *,
        limits: Limits | None = None,
        root_tier: str = "",
        sub_tier: str = "",
        answer_schema_json: str = "",
        conversation: str = "",
        confidence_min: float | None = None,
        direct_tokens_max: int | None = None,
        profile: str = "",
        request_id: str | None = None,
    ) -> run_pb2.Run:
        """Start a run over `contexts/{context}` and return at once.

        Without a `request_id` one is made, so that a retry of the connection starts no second
        run; pass your own to make a repeat by yourself safe too. With a JSON Schema the answer's
        text is JSON that fits it. A run in `conversations/{conversation}` needs no context.
        `profiles/{profile}` decides what is not set here.
        """
        spec = run_pb2.RunSpec(
            question=question,
            context=context,
            limits=(limits or Limits()).to_wire(),
            root_tier=root_tier,
            sub_tier=sub_tier,
            answer_schema_json=answer_schema_json,
            conversation=conversation,
            confidence_min=confidence_min,
            direct_tokens_max=direct_tokens_max,
            profile=profile,
        )
        request = orchestrator_service_pb2.CreateRunRequest(
            spec=spec, request_id=request_id or str(uuid.uuid4())
        )
        response = await answer_of(self._orchestrator.CreateRun(request, timeout=_TIMEOUT_S))
        return response.run

    async def fork(
        self,
        name: str,
        *,
        after_turn: int,
        question: str = "",
        limits: Limits | None = None,
        root_tier: str = "",
        sub_tier: str = "",
        request_id: str | None = None,
    ) -> run_pb2.Run:
        """Start a run that takes over the turns of `runs/{run}` up to one, and return at once.

        What is given replaces the run's own, limits one by one; turns count on. A `request_id` is
        as in `create`.
        """
        changes = run_pb2.RunSpec(
            question=question,
            limits=limits.to_wire() if limits else None,
            root_tier=root_tier,
            sub_tier=sub_tier,
        )
        request = orchestrator_service_pb2.ForkRunRequest(
            name=name,
            after_turn=after_turn,
            changes=changes,
            request_id=request_id or str(uuid.uuid4()),
        )
        response = await answer_of(self._orchestrator.ForkRun(request, timeout=_TIMEOUT_S))
        return response.run

    async def estimate(
        self,
        question: str,
        context: str | uploads.Upload,
        *,
        limits: Limits | None = None,
        root_tier: str = "",
        sub_tier: str = "",
        answer_schema_json: str = "",
        confidence_min: float | None = None,
        profile: str = "",
    ) -> orchestrator_service_pb2.EstimateRunResponse:
        """Return what a run would take; nothing is uploaded or started for it.

        Raises CallError as `create` would for what is wrong with the question.
        """
        spec = run_pb2.RunSpec(
            question=question,
            limits=(limits or Limits()).to_wire(),
            root_tier=root_tier,
            sub_tier=sub_tier,
            answer_schema_json=answer_schema_json,
            confidence_min=confidence_min,
            profile=profile,
        )
        request = orchestrator_service_pb2.EstimateRunRequest(spec=spec)
        if isinstance(context, str):
            request.spec.context = context
        else:
            request.context_bytes = context.size_bytes
            request.context_documents = len(context.files)
        return await answer_of(self._orchestrator.EstimateRun(request, timeout=_TIMEOUT_S))

    async def ask(
        self,
        question: str,
        context: str | uploads.Upload,
        *,
        limits: Limits | None = None,
        on_event: Callable[[run_event_pb2.RunEvent], None] | None = None,
    ) -> Result:
        """Upload if need be, start a run and wait for its end.

        A run that ends partial, failed or cancelled is a Result too; look at its `status`.
        """
        name = context if isinstance(context, str) else (await self.upload(context)).name
        run = await self.create(question, name, limits=limits)
        async for event in self.watch(run.name):
            if on_event is not None:
                on_event(event)
        return Result(await self.get(run.name))

    def watch(
        self, name: str, *, after_sequence: int = 0, on_break: Callable[[], None] = lambda: None
    ) -> AsyncIterator[run_event_pb2.RunEvent]:
        """Yield the run's events after `after_sequence`, then live ones, up to the last.

        A connection that breaks is resumed without a gap or a repeat; `on_break` hears of it.
        """
        return watching.watch(
            self._orchestrator, name, after_sequence=after_sequence, on_break=on_break
        )

    async def get(self, name: str) -> run_pb2.Run:
        """Return `runs/{run}` as it stands."""
        request = orchestrator_service_pb2.GetRunRequest(name=name)
        response = await answer_of(self._orchestrator.GetRun(request, timeout=_TIMEOUT_S))
        return response.run

    async def list_runs(
        self, *, count_max: int, states: Iterable[run_pb2.Run.State.ValueType] = ()
    ) -> list[run_pb2.Run]:
        """Return the newest runs, at most `count_max`, in one of `states` where any is given."""
        runs: list[run_pb2.Run] = []
        states, page_token = tuple(states), ""
        while len(runs) < count_max:
            request = orchestrator_service_pb2.ListRunsRequest(
                page_size=min(count_max - len(runs), 500), page_token=page_token, states=states
            )
            page = await answer_of(self._orchestrator.ListRuns(request, timeout=_TIMEOUT_S))
            runs.extend(page.runs)
            page_token = page.next_page_token
            if not page_token:
                break
        return runs

    async def usage(
        self,
        name: str,
        *,
        group_by: orchestrator_service_pb2.GetRunUsageRequest.GroupBy.ValueType = (
            orchestrator_service_pb2.GetRunUsageRequest.GROUP_BY_UNSPECIFIED
        ),
    ) -> orchestrator_service_pb2.GetRunUsageResponse:
        """Return what `runs/{run}` and all below it took, summed up by what is named."""
        request = orchestrator_service_pb2.GetRunUsageRequest(name=name, group_by=group_by)
        return await answer_of(self._orchestrator.GetRunUsage(request, timeout=_TIMEOUT_S))

    async def cancel(self, name: str) -> run_pb2.Run:
        """Ask a run to stop and return without waiting; it is safe to repeat."""
        request = orchestrator_service_pb2.CancelRunRequest(name=name)
        response = await answer_of(self._orchestrator.CancelRun(request, timeout=_TIMEOUT_S))
        return response.run
