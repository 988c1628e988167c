"""Events of a run on the wire: one a response, or as many as fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fathom.orchestrator.v1.orchestrator_service_pb2 import WatchRunResponse
from fathom.orchestrator.v1.run_event_pb2 import RunEvent

_JOINED_BYTES_MAX = 1 << 20
"""Of a response with several events; one that is larger by itself has its own."""


def responses(events: Sequence[RunEvent], *, joined: bool) -> Iterator[WatchRunResponse]:
    """Yield responses that hold all the events in order, several each where they may be joined."""
    if not joined:
        for event in events:
            yield WatchRunResponse(event=event)
        return
    start = 0
    while start < len(events):
        end, size_bytes = start + 1, events[start].ByteSize()
        while end < len(events):
            size_bytes += events[end].ByteSize()
            if size_bytes > _JOINED_BYTES_MAX:
                break
            end += 1
        yield WatchRunResponse(event=events[start], further=events[start + 1 : end])
        start = end
