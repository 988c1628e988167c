"""Puts the operations of concurrent calls into common transactions: whatever comes while one is
being committed makes the next. Where calls come together they wait a moment for more of them;
a lone call waits for nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from llm_gateway.errors import LedgerUnavailableError
from llm_gateway.ledger.operations import CallStore, Operation, StoreUnavailableError

_OPERATIONS_MAX = 500
"""In one transaction."""
_GATHER_S = 0.005
"""Between two transactions while calls come together: most of a small transaction's cost, and of
waking the thread that makes it, is the same for ten of them."""
_GATHERED = 12
"""Operations that are worth a transaction at once: calls that begin together wait for them."""
_ONE_CALLS = 2
"""Operations that one call posts together: what it took, for its limits and for its books."""
_PAUSES_S = (0.05, 0.2, 0.5, 1.0)
"""Before each repeat of a transaction, while the store is away or too busy."""
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class GroupCommit:
    """The one way to a store of calls."""

    def __init__(
        self, store: CallStore, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._store = store
        self._sleep = sleep
        self._queue: list[tuple[Operation[Any], asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._has_gathered = asyncio.Event()

    def post(self, operation: Operation[Result]) -> asyncio.Future[Result]:
        """Have an operation done, also where nobody waits for the outcome.

        The future is done after the commit. LedgerUnavailableError tells that it was not done.
        """
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(_seen)
        self._queue.append((operation, outcome))
        if len(self._queue) >= _GATHERED:
            self._has_gathered.set()
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return cast("asyncio.Future[Result]", outcome)

    async def flush(self) -> None:
        """Wait until all that was posted is done."""
        while self._writing is not None:
            await asyncio.wait([self._writing])

    async def _write(self) -> None:
        try:
            while self._queue:
                group = self._queue[:_OPERATIONS_MAX]
                del self._queue[:_OPERATIONS_MAX]
                await self._commit(group)
                if len(group) > _ONE_CALLS and len(self._queue) < _GATHERED:
                    await self._gather()
        finally:
            self._writing = None

    async def _gather(self) -> None:
        self._has_gathered.clear()
        enough = asyncio.get_running_loop().call_later(_GATHER_S, self._has_gathered.set)
        await self._has_gathered.wait()
        enough.cancel()

    async def _commit(self, group: list[tuple[Operation[Any], asyncio.Future[Any]]]) -> None:
        try:
            outcomes = await self._apply([operation for operation, _ in group])
        except StoreUnavailableError as error:
            _log.error("the ledger cannot be reached", extra={"kind": str(error)})
            for _, outcome in group:
                _fail(outcome, LedgerUnavailableError())
        except Exception as error:
            if len(group) == 1:
                _fail(group[0][1], error)
            else:  # what is wrong with one must not fail the others
                for each in group:
                    await self._commit([each])
        else:
            for (_, outcome), result in zip(group, outcomes, strict=True):
                if not outcome.done():
                    outcome.set_result(result)

    async def _apply(self, operations: list[Operation[Any]]) -> list[Any]:
        for pause_s in _PAUSES_S:
            try:
                return await self._store.apply(operations)
            except StoreUnavailableError as error:
                _log.warning("the ledger is away or too busy", extra={"kind": str(error)})
            await self._sleep(pause_s)
        return await self._store.apply(operations)


def _fail(outcome: asyncio.Future[Any], error: Exception) -> None:
    if not outcome.done():
        outcome.set_exception(error)


def _seen(outcome: asyncio.Future[Any]) -> None:
    if not outcome.cancelled():
        outcome.exception()  # looked at here, in case nobody waits
