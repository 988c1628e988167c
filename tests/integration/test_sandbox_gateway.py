"""The sandbox's way to the gateway: what is repeated, what is not, and what a cut leaves."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as wire
from fathom.gateway.v1.gateway_service_pb2_grpc import (
    GatewayServiceServicer,
    add_GatewayServiceServicer_to_server,
)
from fathom.gateway.v1.generation_pb2 import Generation

from common.channel import open_channel
from common.errors import DrainingError, ServiceError
from sandbox_service import gateway_client
from sandbox_service.frames import Message
from sandbox_service.gateway_client import GatewaySubModels
from sandbox_service.run_pass import RunPass
from sandbox_service.sub_calls import SubCall
from tests.support.serving import serve


class DownError(ServiceError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE


class Gateway(GatewayServiceServicer):
    """Fails as often as it is told to, then answers."""

    def __init__(self, *failures: ServiceError) -> None:
        self.failures = list(failures)
        self.cut_after: int | None = None
        self.silent = False
        self.asked: list[str] = []
        self.concurrency = 0

    async def Generate(self, request: wire.GenerateRequest, context: Any) -> wire.GenerateResponse:
        self.asked.append(request.call.request_id)
        if self.failures:
            raise self.failures.pop(0)
        return wire.GenerateResponse(generation=Generation(text="yes"))

    async def BatchGenerate(
        self, requests: AsyncIterator[wire.BatchGenerateRequest], context: Any
    ) -> AsyncIterator[wire.BatchGenerateResponse]:
        answered = 0
        async for message in requests:
            if message.HasField("start"):
                self.concurrency = message.start.concurrency_max
                continue
            self.asked.append(message.item.call.request_id)
            if self.cut_after == answered:
                self.cut_after = None
                raise DrainingError
            answered += 1
            if not self.silent:
                generation = Generation(text=f"yes {message.item.index}")
                yield wire.BatchGenerateResponse(index=message.item.index, generation=generation)

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield

    async def CountTokens(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def SettleCalls(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def ListModels(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_client, "_PAUSE_S", 0.001)


@asynccontextmanager
async def asking(gateway: Gateway, away_max_s: float) -> AsyncIterator[GatewaySubModels]:
    def register(server: Any) -> None:
        add_GatewayServiceServicer_to_server(gateway, server.grpc)

    async with serve(register) as channel:
        yield GatewaySubModels(
            channel, call_timeout_s=60, concurrency_max=16, away_max_s=away_max_s
        )


def calls(count: int, *, has_id: bool = True) -> list[SubCall]:
    return [
        SubCall(
            number=i + 1,
            request_id=f"r/{i}" if has_id else "",
            messages=[Message("user", "?")],
            tier="sub",
            output_tokens_max=None,
            temperature=None,
            turn=1,
        )
        for i in range(count)
    ]


async def outcomes(
    gateway: Gateway, asked: list[SubCall], *, away_max_s: float = 60.0
) -> list[str]:
    """Ask, and return texts or reasons in the order of the calls."""
    async with asking(gateway, away_max_s) as sub_models:
        found = {
            position: value async for position, value in sub_models.ask(asked, RunPass("token"))
        }
    return [_shown(found[position]) for position in range(len(asked))]


def _shown(outcome: Generation | ServiceError) -> str:
    if isinstance(outcome, ServiceError):
        return outcome.reason_name.removeprefix("ERROR_REASON_")
    return outcome.text


async def test_a_gateway_that_restarts_is_asked_again() -> None:
    """With the same request id, so that nothing is paid twice."""
    gateway = Gateway(DrainingError(), DrainingError())

    assert await outcomes(gateway, calls(1)) == ["yes"]
    assert gateway.asked == ["r/0"] * 3


async def test_a_gateway_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for ever: the code that waits would never learn of it."""
    gateway = Gateway(*[DrainingError() for _ in range(99)])
    # A second passes from one attempt to the next.
    clock = types.SimpleNamespace(monotonic=lambda: float(len(gateway.asked)))
    monkeypatch.setattr(gateway_client, "time", clock)

    assert await outcomes(gateway, calls(1), away_max_s=4.5) == ["DRAINING"]
    assert len(gateway.asked) == 6


async def test_a_providers_error_is_not_repeated() -> None:
    """The gateway has retried already; each retry has one owner."""
    gateway = Gateway(DownError("down"))

    assert await outcomes(gateway, calls(1)) == ["PROVIDER_UNAVAILABLE"]
    assert len(gateway.asked) == 1


async def test_a_call_without_an_id_is_not_repeated() -> None:
    """The gateway could not tell that it is the same call."""
    gateway = Gateway(DrainingError())

    assert await outcomes(gateway, calls(1, has_id=False)) == ["DRAINING"]
    assert len(gateway.asked) == 1


async def test_a_batch_that_is_cut_off_asks_again_for_what_is_left() -> None:
    gateway = Gateway()
    gateway.cut_after = 2

    assert await outcomes(gateway, calls(4)) == ["yes 0", "yes 1", "yes 2", "yes 3"]
    assert gateway.asked == ["r/0", "r/1", "r/2", "r/2", "r/3"]
    assert gateway.concurrency == 16


async def test_an_item_that_is_left_unanswered_is_an_error() -> None:
    """Never an empty answer."""
    gateway = Gateway()
    gateway.silent = True

    assert await outcomes(gateway, calls(2)) == ["INTERNAL", "INTERNAL"]


async def test_a_gateway_that_is_not_there_is_an_error() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        sub_models = GatewaySubModels(channel, call_timeout_s=5, concurrency_max=16, away_max_s=0.1)
        ((_, outcome),) = [pair async for pair in sub_models.ask(calls(1), RunPass("token"))]

    assert isinstance(outcome, ServiceError)
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
