"""A call awaited, its failure turned into this library's own errors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc

from fathom_client.errors import from_rpc_error

Answered = TypeVar("Answered")


async def answer_of(call: Awaitable[Answered]) -> Answered:
    """Return what a call answers; raises CallError."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
