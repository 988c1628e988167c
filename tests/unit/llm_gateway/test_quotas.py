"""The quotas of tenants, where the database that holds them does not answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest

from common.database import Database
from llm_gateway.accounts import quotas
from llm_gateway.accounts.quotas import QuotaBook
from llm_gateway.errors import LedgerUnavailableError
from tests.support.gateway import token


class HangingDatabase:
    """Takes connections and says nothing."""

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


async def test_a_database_that_hangs_refuses_calls_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the quotas no call is let through, and none is kept waiting for ever."""
    monkeypatch.setattr(quotas, "_SILENCE_S_MAX", 0.05)
    book = QuotaBook(cast("Database", HangingDatabase()))

    with pytest.raises(LedgerUnavailableError) as caught:
        await asyncio.wait_for(book.caps(token(), "sub"), 30)

    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason_name == "ERROR_REASON_LEDGER_UNAVAILABLE"
