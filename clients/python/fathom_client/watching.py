"""Following a run's events across broken connections, without a gap and without a repeat.

The one owner of retries for a watch; other calls are retried by the channel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from fathom.orchestrator.v1 import (
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
    run_event_pb2,
    run_pb2,
)

from fathom_client.errors import from_rpc_error

TERMINAL_STATES = frozenset(
    {
        run_pb2.Run.STATE_ANSWERED,
        run_pb2.Run.STATE_PARTIAL,
        run_pb2.Run.STATE_FAILED,
        run_pb2.Run.STATE_CANCELLED,
    }
)
"""States that a run never leaves."""

_WATCH_TIMEOUT_S = 3600.0
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 3.0
_RESUMED_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


async def watch(
    orchestrator: orchestrator_service_pb2_grpc.OrchestratorServiceAsyncStub,
    name: str,
    *,
    after_sequence: int = 0,
    patience_s: float = 30.0,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    on_break: Callable[[], None] = lambda: None,
) -> AsyncIterator[run_event_pb2.RunEvent]:
    """Yield the run's events in order, ending after its last one.

    A connection that breaks is made again, and the events go on where they stopped; the error
    is raised once `patience_s` seconds passed without an event reaching us after a break.
    `on_break` is called once for each break, before it is mended.
    """
    sequence = after_sequence
    backoff_s, broken_since = _BACKOFF_FIRST_S, None
    while True:
        call = orchestrator.WatchRun(
            orchestrator_service_pb2.WatchRunRequest(
                name=name, after_sequence=sequence, joined=True
            ),
            timeout=_WATCH_TIMEOUT_S,
        )
        try:
            async for response in call:
                for event in (response.event, *response.further):
                    if event.sequence <= sequence:
                        continue
                    sequence = event.sequence
                    backoff_s, broken_since = _BACKOFF_FIRST_S, None
                    yield event
        except grpc.aio.AioRpcError as error:
            is_new = broken_since is None
            broken_since = clock() if broken_since is None else broken_since
            waited_s = clock() - broken_since
            if error.code() not in _RESUMED_CODES or waited_s + backoff_s > patience_s:
                raise from_rpc_error(error) from error
            if is_new:
                on_break()
        else:
            return
        finally:
            call.cancel()
        await pause(backoff_s)
        backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)
