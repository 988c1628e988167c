"""Answers that are given again: from memory, from a shared store, or to all who ask the same at the
same time. What a call may find is decided by its place; nothing here looks into prompts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from common import telemetry_names as names
from common.telemetry import meter
from llm_gateway.answers import Answer, Completion, FinishReason
from llm_gateway.cache.flights import Flights
from llm_gateway.cache.place import CachePlace, place_of
from llm_gateway.cache.rules import CacheRules
from llm_gateway.cache.store import CacheStore, MemoryCacheStore
from llm_gateway.calls import Call
from llm_gateway.catalog import Deployment
from llm_gateway.errors import LedgerUnavailableError
from llm_gateway.ledger.entries import RecordedAnswer

_FOLLOWS_MAX = 3
"""Failures of others that a call waits through before it asks by itself."""
_log = logging.getLogger(__name__)
Ask = Callable[[], Coroutine[Any, Any, Answer]]
Found = Answer | RecordedAnswer


class AnswerCache:
    """The cache of one process, in front of one that others share."""

    def __init__(
        self,
        rules: CacheRules,
        make_shared: Callable[[CacheRules], CacheStore | None] = lambda _: None,
        *,
        make_memory: Callable[[int], CacheStore] = MemoryCacheStore,
    ) -> None:
        """`make_shared` makes the store behind the one in memory, where the rules want one;
        `make_memory` makes that one for a number of bytes."""
        self._rules = rules
        self._make_shared = make_shared
        self._make_memory = make_memory
        self._memory = make_memory(rules.memory_bytes_max)
        self._shared = self._shared_store()
        self._flights: Flights[Found] = Flights()
        self._count = meter(__name__).create_counter(names.METRIC_GATEWAY_CACHE)

    def apply(self, rules: CacheRules) -> None:
        """Take over other rules; memory of another size begins empty."""
        before, self._rules = self._rules, rules
        if rules.memory_bytes_max != before.memory_bytes_max:
            self._memory = self._make_memory(rules.memory_bytes_max)
        if rules != before:
            self._shared = self._shared_store()

    def place_of(self, call: Call, equals: Sequence[Deployment]) -> CachePlace | None:
        """Return where a call's answer would stand; None where the call is always asked."""
        return place_of(call, equals, self._rules)

    async def answer(
        self,
        place: CachePlace,
        ask: Ask,
        *,
        begin: Callable[[], None],
        end: Callable[[], None],
        deadline: float | None = None,
    ) -> Found:
        """Return the answer of a place, or of `ask`, which raises what it likes.

        An asking that others wait for outlives its caller: `begin` is called before, `end` once
        it is over. What it raises, and a truncated answer, is its caller's alone. Raises
        TimeoutError where somebody else's asking lasts beyond `deadline`, in the loop's time.
        """
        for _ in range(_FOLLOWS_MAX):
            kept = await self._kept(self._memory, place)
            if kept is not None:
                self._count.add(1, {names.STATUS: "hit"})
                return kept
            flight = self._flights.get(place.key)
            if flight is None:
                begin()
                return await self._flights.begin(place.key, self._lead(place, ask), end).outcome()
            async with asyncio.timeout_at(deadline):
                try:
                    found = await flight.outcome()
                except Exception as error:  # its own caller gets it; here it only says: ask again
                    _log.debug("an identical call failed", extra={"kind": type(error).__name__})
                    continue
            if isinstance(found, RecordedAnswer) or _is_whole(found.completion):
                self._count.add(1, {names.STATUS: "shared"})
                return _recorded(found)
        return await ask()

    async def close(self) -> None:
        """End the askings under way."""
        await self._flights.close()

    async def _lead(self, place: CachePlace, ask: Ask) -> Found:
        """Look where it takes longer, then ask and keep the answer."""
        if self._shared is not None:
            kept = await self._kept(self._shared, place)
            if kept is not None:
                self._count.add(1, {names.STATUS: "hit"})
                await self._memory.put(place.key, kept.encode(), self._rules.ttl_s)
                return kept
        self._count.add(1, {names.STATUS: "miss"})
        answer = await ask()
        if _is_whole(answer.completion) and answer.model in place.models:
            await self._keep(place, _recorded(answer).encode())
        return answer

    async def _keep(self, place: CachePlace, data: bytes) -> None:
        rules = self._rules
        if not rules.is_on or len(data) > rules.answer_bytes_max:
            return
        await self._memory.put(place.key, data, rules.ttl_s)
        if self._shared is not None:
            try:
                await self._shared.put(place.key, data, rules.ttl_s)
            except LedgerUnavailableError:
                _log.warning("an answer was not kept for other processes")

    async def _kept(self, store: CacheStore, place: CachePlace) -> RecordedAnswer | None:
        """Return what a store has; a store that is away, or holds what is damaged, has nothing."""
        try:
            data = await store.get(place.key)
            return None if data is None else RecordedAnswer.decode(data)
        except (LedgerUnavailableError, ValueError) as error:
            _log.warning("a cached answer was not read", extra={"kind": type(error).__name__})
            return None

    def _shared_store(self) -> CacheStore | None:
        return self._make_shared(self._rules) if self._rules.is_on else None


def _is_whole(completion: Completion) -> bool:
    """Whether an answer is one that another caller can use: not cut short, withheld or empty."""
    return completion.finish_reason is FinishReason.STOP and bool(completion.text)


def _recorded(found: Found) -> RecordedAnswer:
    if isinstance(found, RecordedAnswer):
        return found
    return RecordedAnswer(found.completion, found.model)
