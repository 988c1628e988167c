"""Wakes those who wait for room under a limit when there may be some: a few at a time."""

from __future__ import annotations

import asyncio
import itertools

_WOKEN_MAX = 8
"""Runs that look whether there is room for them once something is settled. Were it all, each of a
thousand that wait for a tenant's quota would look a thousand times."""
Key = tuple[str, str]
"""A tenant and one of its runs."""


class Bells:
    """Tells who waits that something was settled: the same run, and those of its tenant that have
    waited longest since they looked. The others look after a while by themselves."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, asyncio.Future[None]]] = {}

    def next(self, key: Key) -> asyncio.Future[None]:
        """Return what is done once a run, of which one call waits, is to look again."""
        tenant, run = key
        waiting = self._waiting.setdefault(tenant, {})
        if run not in waiting:
            waiting[run] = asyncio.get_running_loop().create_future()
        return waiting[run]

    def ring(self, key: Key) -> None:
        """Say that something of a run was settled."""
        tenant, run = key
        waiting = self._waiting.get(tenant, {})
        woken = dict.fromkeys((run, *itertools.islice(waiting, _WOKEN_MAX)))
        for each in woken:
            change = waiting.pop(each, None)
            if change is not None:
                change.set_result(None)
        if not waiting:
            self._waiting.pop(tenant, None)
