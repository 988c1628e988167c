"""The log of every run's events: appended in memory, committed in groups, then followed by
watchers, live from memory or from the database where they have fallen behind.

An event is seen by nobody before it is stored.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence

from fathom.orchestrator.v1.run_event_pb2 import RunEvent

from common.errors import DrainingError
from orchestrator.runs.record import RunRecord, ends_run
from orchestrator.runs.store import RunStore

_GROUP_S = 0.02
"""How long an event that may wait is held back for others to share its commit."""
_RECENT_EVENTS = 1000
"""Events of a live run kept in memory for watchers."""
_PAGE_EVENTS = 200


class EventLog:
    """The log. `write` must run, in a task, for anything to be stored."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._pending: dict[str, tuple[RunRecord, list[RunEvent]]] = {}
        self._appended = asyncio.Event()
        self._urgent = asyncio.Event()
        self._feeds: dict[str, _Feed] = {}
        self._is_draining = False
        self._is_closed = False

    def open(self, run_id: str) -> None:
        """Begin to keep a live run's events in memory; the run's last event ends that."""
        self._feeds[run_id] = _Feed()

    def discard(self, run_id: str) -> None:
        """Forget a run that was opened and could not be stored."""
        del self._feeds[run_id]

    def append(self, record: RunRecord, event: RunEvent, *, may_wait: bool = False) -> None:
        """Add an event that has its sequence; the run is stored with it as it is at the commit."""
        _, events = self._pending.setdefault(record.run_id, (record, []))
        events.append(event)
        self._appended.set()
        if not may_wait:
            self._urgent.set()

    async def write(self) -> None:
        """Store what is appended, until closed. A failing database ends it with the error: going
        on would tell watchers what is not stored."""
        while True:
            await self._appended.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GROUP_S):
                    await self._urgent.wait()
            await self._flush()
            if self._is_closed:
                return

    def close(self) -> None:
        """Have `write` store what is left, and end."""
        self._is_closed = True
        self._appended.set()
        self._urgent.set()

    async def _flush(self) -> None:
        batch, self._pending = self._pending, {}
        self._appended.clear()
        self._urgent.clear()
        if not batch:
            return
        await self._store.append(batch)
        for run_id, (_, events) in batch.items():
            self.publish(run_id, events)

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        """Show stored events to watchers."""
        feed = self._feeds[run_id]
        feed.show(events)
        if ends_run(events[-1]):
            del self._feeds[run_id]

    async def follow(self, run_id: str, *, after: int) -> AsyncIterator[RunEvent]:
        """Yield the events after a sequence, stored ones first, to the run's last one.

        Raises DrainingError when the server shuts down before that.
        """
        while True:
            feed = self._feeds.get(run_id)
            events = feed.after(after) if feed is not None else None
            if events is None:
                events = await self._store.events(run_id, after=after, count=_PAGE_EVENTS)
            for event in events:
                yield event
                after = event.sequence
            if events:
                if ends_run(events[-1]):
                    return
            elif feed is None:
                return
            else:
                await self._change(feed, after)

    def drain(self) -> None:
        """End every watcher."""
        self._is_draining = True
        for feed in self._feeds.values():
            feed.changed.set()

    async def _change(self, feed: _Feed, after: int) -> None:
        """Wait until the feed has more than the events up to `after`."""
        if self._is_draining:
            raise DrainingError
        if feed.last <= after:
            await feed.changed.wait()


class _Feed:
    """The newest events of a live run."""

    def __init__(self) -> None:
        self._recent: collections.deque[RunEvent] = collections.deque(maxlen=_RECENT_EVENTS)
        self.changed = asyncio.Event()

    @property
    def last(self) -> int:
        return self._recent[-1].sequence if self._recent else 0

    def show(self, events: Sequence[RunEvent]) -> None:
        self._recent.extend(events)
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, sequence: int) -> list[RunEvent] | None:
        """Return the events after a sequence; None where some are no longer in memory."""
        if not self._recent:
            return []
        skipped = sequence + 1 - self._recent[0].sequence
        if skipped < 0:
            return None
        return list(itertools.islice(self._recent, skipped, None))
