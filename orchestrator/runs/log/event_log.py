"""The log of every run's events: appended in memory by whoever drives the run here, committed in
groups, and followed by watchers, from memory where the run is driven here and otherwise from the
database.

An event is seen by nobody before it is stored.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy.exc import DBAPIError

from common.database import DatabaseAwayError
from common.errors import DrainingError
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord, ends_run
from orchestrator.runs.log.store import Appendage, RunStore

_GROUP_S = 0.01
"""How long an event that may wait is held back for others to share its commit."""
LATE_S = 20.0
_RECENT_EVENTS = 1000
"""Events of a live run kept in memory for watchers."""
_PAGE_EVENTS = 200
_LOOK_S = 2.0
"""How often a watcher looks by itself: a notification can be lost with its connection."""
_AWAY_S = (0.1, 2.0)
"""Pauses while the database is away, the first and the longest."""
_log = logging.getLogger(__name__)
_Bells = weakref.WeakValueDictionary[str, asyncio.Event]


class EventLog:
    """The log. `write` must run, in a task, for anything to be stored."""

    def __init__(self, store: RunStore, *, late_s: float = LATE_S) -> None:
        """`late_s` is how long after its end the usage of a run is looked at once more: by then
        the leases should have ended of those who died over its calls."""
        self._store = store
        self._late_s = late_s
        self._feeds: dict[str, _Feed] = {}
        self._pending: dict[str, _Pending] = {}
        self._writing: frozenset[str] = frozenset()
        self._appended = asyncio.Event()
        self._urgent = asyncio.Event()
        # Kept by those who wait: a run that nobody waits for has none.
        self._bells: _Bells = weakref.WeakValueDictionary()
        self._drivers_bells: _Bells = weakref.WeakValueDictionary()
        self._is_draining = False
        self._is_closed = False
        self.on_lost: Callable[[str], None] = _ignore
        """Called with a run that another process has taken up; nothing of it is stored here."""

    def open(self, record: RunRecord, *, epoch: int) -> None:
        """Begin to take a run's events: it is driven here, taken up for the `epoch`-th time. What
        an earlier epoch has not stored by now never will be, and must not take these along."""
        self._pending.pop(record.run_id, None)
        self._feeds[record.run_id] = _Feed(epoch, record.progress.last_sequence)
        self.wake(record.run_id)

    def close_run(self, run_id: str) -> None:
        """Take no further events of a run; what was appended is still stored."""
        self._feeds.pop(run_id, None)
        self.wake(run_id)

    def append(self, record: RunRecord, event: RunEvent, *, may_wait: bool = False) -> None:
        """Add an event that has its sequence; the run is stored with it as it is at the commit.

        Does nothing for a run that is no longer driven here.
        """
        feed = self._feeds.get(record.run_id)
        if feed is None or feed.is_lost:
            return
        pending = self._pending.setdefault(record.run_id, _Pending(record, feed, []))
        pending.events.append(event)
        self._appended.set()
        if not may_wait:
            self._urgent.set()

    async def stored(self, run_id: str) -> None:
        """Return once all that was appended of a run is stored; never, where the run was lost."""
        while run_id in self._pending or run_id in self._writing or self._is_lost(run_id):
            await self._drivers_bells.setdefault(run_id, asyncio.Event()).wait()

    async def write(self) -> None:
        """Store what is appended, until closed. Waits for a database that is away."""
        while True:
            await self._appended.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GROUP_S):
                    await self._urgent.wait()
            await self._flush()
            if self._is_closed and not self._pending:
                return

    def close(self) -> None:
        """Have `write` store what is left, and end."""
        self._is_closed = True
        self._appended.set()
        self._urgent.set()

    async def past(self, run_id: str) -> AsyncIterator[RunEvent]:
        """Yield the events of a run that are stored so far."""
        after, is_more = 0, True
        while is_more:
            events = await self._store.events(run_id, after=after, count=_PAGE_EVENTS)
            for event in events:
                yield event
                after = event.sequence
            is_more = len(events) == _PAGE_EVENTS

    async def follow(self, run_id: str, *, after: int) -> AsyncIterator[RunEvent]:
        """Yield the events after a sequence, stored ones first, to the run's last one, wherever
        the run is driven.

        Raises DrainingError when the server shuts down before that, and DatabaseAwayError.
        """
        async for events in self.follow_joined(run_id, after=after):
            for event in events:
                yield event

    async def follow_joined(self, run_id: str, *, after: int) -> AsyncIterator[Sequence[RunEvent]]:
        """Yield the same, those together that are there at once."""
        has_ended = False
        while True:
            bell = self._bell(run_id)  # before looking, so that nothing falls between
            feed = self._feeds.get(run_id)
            events = feed.after(after) if feed is not None else None
            if events is None:
                events = await self._store.events(run_id, after=after, count=_PAGE_EVENTS)
            if events:
                yield events
                after = events[-1].sequence
                if ends_run(events[-1]):
                    return
                if len(events) >= _PAGE_EVENTS:
                    continue
            elif has_ended:
                return
            elif feed is None and await self._store.has_ended(run_id):
                has_ended = True  # its last event may have come since
                continue
            await self._wait(bell)

    async def has_ended(self, run_id: str) -> bool:
        """True where a run's end is stored, whoever drove it. Raises DatabaseAwayError."""
        return await self._store.has_ended(run_id)

    def wake(self, run_id: str) -> None:
        """Have the watchers of a run look again. Whoever drives it goes on first: to tell watchers
        takes a while."""
        for bells in (self._drivers_bells, self._bells):
            bell = bells.pop(run_id, None)
            if bell is not None:
                bell.set()

    def wake_all(self) -> None:
        """Have every watcher look again."""
        for run_id in list(self._bells):
            self.wake(run_id)

    def drain(self) -> None:
        """End every watcher."""
        self._is_draining = True
        self.wake_all()

    async def _flush(self) -> None:
        batch, self._pending = self._pending, {}
        self._appended.clear()
        self._urgent.clear()
        if not batch:
            return
        self._writing = frozenset(batch)
        # As they are at this moment: while the database is away, runs go on.
        appendages = [pending.appendage(self._late_s) for pending in batch.values()]
        lost = await self._store_patiently(appendages)
        self._writing = frozenset()
        for run_id, pending in batch.items():
            if run_id in lost:
                self._lose(run_id, pending.feed)
            else:
                pending.feed.show(pending.events)
            self.wake(run_id)

    async def _store_patiently(
        self, appendages: Sequence[Appendage], *, is_repeated: bool = False
    ) -> frozenset[str]:
        """Store a batch, however long the database is away, unless this process is to end; return
        the runs that were lost. `is_repeated` says that it may be stored in part."""
        pause_s, longest_s = _AWAY_S
        while True:
            try:
                return await self._store.append(appendages, is_repeated=is_repeated)
            except DatabaseAwayError:
                _log.warning("the database is away; events wait", extra={"pause_s": pause_s})
            except DBAPIError:
                return await self._store_apart(appendages, is_repeated=is_repeated)
            if self._is_closed:
                # The runs go on elsewhere, from what the log has.
                return frozenset(each.run_id for each in appendages)
            is_repeated = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    async def _store_apart(
        self, appendages: Sequence[Appendage], *, is_repeated: bool
    ) -> frozenset[str]:
        """Store each run by itself, so that one that cannot be stored fails alone."""
        if len(appendages) > 1:
            lost = [
                await self._store_patiently([each], is_repeated=is_repeated) for each in appendages
            ]
            return frozenset().union(*lost)
        run_id = appendages[0].run_id
        _log.exception("events cannot be stored", extra={"run": f"runs/{run_id}"})
        return frozenset({run_id})

    def _lose(self, run_id: str, feed: _Feed) -> None:
        feed.is_lost = True
        if self._feeds.get(run_id) is feed:
            self._pending.pop(run_id, None)
            self.on_lost(run_id)

    def _is_lost(self, run_id: str) -> bool:
        feed = self._feeds.get(run_id)
        return feed is not None and feed.is_lost

    def _bell(self, run_id: str) -> asyncio.Event:
        return self._bells.setdefault(run_id, asyncio.Event())

    async def _wait(self, bell: asyncio.Event) -> None:
        if self._is_draining:
            raise DrainingError
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await bell.wait()


class _Feed:
    """The newest events of a run that is driven here."""

    def __init__(self, epoch: int, last: int) -> None:
        self.epoch = epoch
        self.is_lost = False
        self._last_before = last
        self._recent: collections.deque[RunEvent] = collections.deque(maxlen=_RECENT_EVENTS)

    def show(self, events: Sequence[RunEvent]) -> None:
        self._recent.extend(events)

    def after(self, sequence: int) -> list[RunEvent] | None:
        """Return the events after a sequence; None where some are not in memory."""
        if not self._recent:
            return [] if sequence >= self._last_before else None
        skipped = sequence + 1 - self._recent[0].sequence
        if skipped < 0:
            return None
        return list(itertools.islice(self._recent, skipped, None))


@dataclasses.dataclass(frozen=True)
class _Pending:
    """What was appended of a run and is not stored."""

    record: RunRecord
    feed: _Feed
    events: list[RunEvent]

    def appendage(self, late_s: float) -> Appendage:
        """Return what is to be stored; the usage of a run that ends is looked at so much later,
        where it may not be all."""
        progress = self.record.progress
        is_doubtful = ends_run(self.events[-1]) and _is_doubtful(progress, self.feed.epoch)
        return Appendage(
            run_id=self.record.run_id,
            epoch=self.feed.epoch,
            state=progress.state,
            progress=progress.SerializeToString(),
            events=[(event.sequence, event.SerializeToString()) for event in self.events],
            ended_children=[name for event in self.events if (name := _ended_child(event))],
            usage_due_s=late_s if is_doubtful else None,
        )


def _ended_child(event: RunEvent) -> str:
    """Return the child run whose end an event tells; empty for none."""
    run = event.child_run_changed.run
    return run.name.removeprefix("runs/") if run.state in TERMINAL_STATES else ""


def _is_doubtful(run: Run, epoch: int) -> bool:
    """Whether calls of a run that has ended may have taken more than it says: some were cut off,
    or a process has died over them."""
    is_disturbed = epoch > 1 or run.state != Run.STATE_ANSWERED
    return run.usage_incomplete or (is_disturbed and run.HasField("start_time"))


def _ignore(_run_id: str) -> None:
    """Until somebody wants to know."""
