"""Request ids: a repeated call gets the outcome of the first one, and makes nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from common.errors import RequestIdReusedError

_REMEMBERED_S = 600.0

T = TypeVar("T")


class RequestIds(Generic[T]):
    """The calls of the last ten minutes that had a request id, and what they made."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[float, bytes, asyncio.Future[T]]] = {}

    async def once(self, request_id: str, request: object, make: Callable[[], Awaitable[T]]) -> T:
        """Return what `make` makes, or what the call of the same id made; failures are forgotten.

        Raises RequestIdReusedError where that call was another one.
        """
        if not request_id:
            return await make()
        digest = _digest(request)
        while (known := self._calls.get(request_id)) is not None:
            if known[1] != digest:
                raise RequestIdReusedError(request_id)
            await asyncio.wait((known[2],))
            if not known[2].cancelled():
                return known[2].result()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls[request_id] = (time.monotonic(), digest, future)
        try:
            made = await make()
        except asyncio.CancelledError:
            self._calls.pop(request_id, None)
            future.cancel()  # who waits for it makes the same then
            raise
        except BaseException as error:
            self._calls.pop(request_id, None)
            future.set_exception(error)
            future.exception()  # seen here, where nobody else waits for it
            raise
        future.set_result(made)
        return made

    def forget(self, made: T) -> None:
        """Forget the call that made something: it is gone, and what it was asked for may be
        large."""
        for request_id, (_, _, future) in list(self._calls.items()):
            if future.done() and not future.cancelled() and future.result() is made:
                del self._calls[request_id]

    def forget_old(self) -> None:
        """Forget the calls that are old enough."""
        oldest = time.monotonic() - _REMEMBERED_S
        self._calls = {
            request_id: call for request_id, call in self._calls.items() if call[0] > oldest
        }


def _digest(request: object) -> bytes:
    """Return what tells requests apart: one that describes many documents is large to keep."""
    return hashlib.sha256(msgspec.msgpack.encode(request, order="deterministic")).digest()
