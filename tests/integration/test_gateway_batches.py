"""BatchGenerate over a real port."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom_demo.scripted_model import ChatRequest

from common.channel import open_channel
from common.errors import ReceivedError, received
from common.run_token import RunTokenVerifier
from tests.support.cutting_proxy import Gate as Network
from tests.support.cutting_proxy import cutting_proxy
from tests.support.eventually import eventually
from tests.support.gateway import (
    config_file,
    gateway_service,
    metadata,
    violated_fields,
    wire_prompt,
)
from tests.support.played_model import Gate, PlayedModel, answers, fails

TIMEOUT_S = 30


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    """Answers with the prompt itself."""
    async with PlayedModel(answers(lambda request: request.messages[0].content)) as serving:
        yield serving


@pytest.fixture
async def stub(provider: PlayedModel, tmp_path: Path) -> AsyncIterator[Any]:
    async with gateway_service(config_file(tmp_path / "c.toml", [provider.base_url])) as serving:
        yield serving


def start(**fields: Any) -> pb2.BatchGenerateRequest:
    return pb2.BatchGenerateRequest(start=pb2.BatchStart(**fields))


def item(index: int, text: str = "x", **fields: Any) -> pb2.BatchGenerateRequest:
    prompt = wire_prompt(text, **fields)
    return pb2.BatchGenerateRequest(item=pb2.BatchItem(index=index, prompt=prompt))


async def answered(
    stub: Any, requests: Iterable[pb2.BatchGenerateRequest], **token: Any
) -> list[pb2.BatchGenerateResponse]:
    call = stub.BatchGenerate(iter(requests), metadata=metadata(**token), timeout=TIMEOUT_S)
    return [response async for response in call]


async def refusal(stub: Any, *requests: pb2.BatchGenerateRequest) -> ReceivedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answered(stub, requests)
    return received(caught.value)


async def test_every_item_is_answered_once(stub: Any) -> None:
    responses = await answered(stub, [start(), *(item(i, f"text {i}") for i in range(200))])

    assert {r.index: r.generation.text for r in responses} == {i: f"text {i}" for i in range(200)}
    assert len(responses) == 200


async def test_a_batch_without_items_is_empty(stub: Any) -> None:
    assert await answered(stub, [start()]) == []


async def test_answers_come_as_they_are_ready(stub: Any, provider: PlayedModel) -> None:
    slow = Gate(answers("slow"))
    provider.plan(slow)
    call = stub.BatchGenerate(metadata=metadata(), timeout=TIMEOUT_S)
    await call.write(start())
    await call.write(item(0))
    await slow.reached.wait()
    await call.write(item(1, "fast"))

    first = await call.read()
    slow.opened.set()
    await call.done_writing()

    assert (first.index, first.generation.text) == (1, "fast")
    assert (await call.read()).index == 0
    assert await call.read() == grpc.aio.EOF


async def test_one_items_failure_is_its_own(stub: Any, provider: PlayedModel) -> None:
    """A batch of hundreds must not be lost for one refusal."""
    responses = await answered(stub, [start(), item(0), item(1, ""), item(2, tier="none")])

    by_index = {response.index: response for response in responses}
    assert by_index[0].generation.text == "x"
    assert violated_fields(by_index[1].error) == {"prompt.messages[0].text"}
    refused = ReceivedError(by_index[2].error)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason_name == "ERROR_REASON_MODEL_NOT_OFFERED"


async def test_a_stream_that_is_kept_open_does_not_keep_a_token_good(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has got hold of a token could else use it for ever."""
    expires_at = time.time() + 600
    call = stub.BatchGenerate(metadata=metadata(expires_at=expires_at), timeout=TIMEOUT_S)
    await call.write(start())
    await call.write(item(0))
    before = await call.read()
    verify = RunTokenVerifier.verify

    def verify_later(tokens: RunTokenVerifier, text: str, *, now: float, presenter: Any) -> Any:
        return verify(tokens, text, now=now + 600, presenter=presenter)

    monkeypatch.setattr(RunTokenVerifier, "verify", verify_later)
    await call.write(item(1))
    after = await call.read()
    await call.done_writing()

    assert before.generation.text == "x"
    refused = ReceivedError(after.error)
    assert refused.code is grpc.StatusCode.UNAUTHENTICATED
    assert refused.metadata == {"problem": "expired"}


async def test_a_provider_that_rejects_fails_the_items_only(
    stub: Any, provider: PlayedModel
) -> None:
    provider.usual = fails(400)

    responses = await answered(stub, [start(), item(0), item(1)])

    assert {ReceivedError(r.error).reason_name for r in responses} == {
        "ERROR_REASON_PROVIDER_REJECTED"
    }


async def test_a_batch_that_is_rate_limited_as_one_is_answered_in_the_end(
    stub: Any, provider: PlayedModel
) -> None:
    """What a batch does to a new account: every call of the first wave is limited."""
    provider.plan(*[fails(429, headers={"retry-after-ms": "50"})] * 64)

    responses = await answered(stub, [start(), *(item(index) for index in range(64))])

    assert len(responses) == 64
    assert all(response.HasField("generation") for response in responses)


async def test_a_batch_finds_the_concurrency_that_a_provider_bears(
    stub: Any, provider: PlayedModel
) -> None:
    """Without it most of the items would be refused again and again until they fail."""
    refused = 0

    async def bears_six(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        nonlocal refused
        if provider.under_way > 6:
            refused += 1
            return await fails(429)(http, request)
        return await answers("x", delay_s=0.02)(http, request)

    provider.usual = bears_six
    responses = await answered(stub, [start(), *(item(index) for index in range(200))])

    assert all(response.HasField("generation") for response in responses)
    assert len(responses) == 200
    assert refused < 200


@pytest.mark.parametrize("concurrency_max", [1, 7, None])
async def test_no_more_items_are_worked_on_than_asked(
    stub: Any, provider: PlayedModel, concurrency_max: int | None
) -> None:
    at_a_time = 64 if concurrency_max is None else concurrency_max
    gate = Gate(answers("x"))
    provider.usual = gate
    call = stub.BatchGenerate(metadata=metadata(), timeout=TIMEOUT_S)
    await call.write(start(concurrency_max=concurrency_max))
    for index in range(at_a_time + 10):
        await call.write(item(index))
    await call.done_writing()
    await eventually(lambda: provider.under_way == at_a_time)
    gate.opened.set()
    responses = [response async for response in call]

    assert len(responses) == at_a_time + 10
    assert provider.under_way_max == at_a_time


@pytest.mark.parametrize("concurrency_max", [1, 256])
async def test_a_concurrency_within_the_ceiling_is_taken(stub: Any, concurrency_max: int) -> None:
    assert len(await answered(stub, [start(concurrency_max=concurrency_max), item(0)])) == 1


async def test_a_concurrency_above_the_ceiling_is_refused(stub: Any) -> None:
    error = await refusal(stub, start(concurrency_max=257))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason_name == "ERROR_REASON_LIMIT_ABOVE_CEILING"
    assert error.metadata == {
        "field": "start.concurrency_max",
        "value": "257",
        "ceiling": "256",
    }


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "start"),
        ([item(0)], "start"),
        ([pb2.BatchGenerateRequest()], "start"),
        ([start(concurrency_max=0)], "start.concurrency_max"),
        ([start(), start()], "item"),
        ([start(), item(-1)], "item.index"),
        ([start(), item(3), item(3)], "item.index"),
    ],
    ids=["nothing", "item first", "empty first", "zero", "two starts", "negative", "twice"],
)
async def test_a_batch_out_of_order_is_refused_whole(
    stub: Any, requests: list[pb2.BatchGenerateRequest], field: str
) -> None:
    error = await refusal(stub, *requests)

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason_name == "ERROR_REASON_INVALID_FIELD"
    assert violated_fields(error.status) == {field}


async def test_a_cancelled_batch_asks_no_further_item(
    provider: PlayedModel, tmp_path: Path
) -> None:
    provider.usual = Gate(answers("never"))
    path = config_file(tmp_path / "c.toml", [provider.base_url])
    async with gateway_service(path, abandoned_drain_s=0.05) as stub:
        requests = iter([start(concurrency_max=3), *(item(index) for index in range(20))])
        call = stub.BatchGenerate(requests, metadata=metadata(), timeout=TIMEOUT_S)
        await eventually(lambda: provider.under_way == 3)
        call.cancel()
        await eventually(lambda: provider.under_way == 0)

    assert len(provider.bodies) == 3


async def test_a_batch_whose_connection_breaks_is_left_and_does_not_end_as_a_whole_one(
    provider: PlayedModel, tmp_path: Path
) -> None:
    """To a server, a stream of requests that broke off can look like one that has ended."""
    provider.usual = Gate(answers("never"))
    path = config_file(tmp_path / "c.toml", [provider.base_url])
    settings: dict[str, Any] = {"abandoned_drain_s": 0.05, "address_file": tmp_path / "address"}
    network = Network()
    async with gateway_service(path, **settings):
        address = settings["address_file"].read_text().strip()
        async with cutting_proxy(address, gate=network) as way, open_channel(way) as channel:
            call = GatewayServiceStub(channel).BatchGenerate(metadata=metadata(), timeout=TIMEOUT_S)
            for request in (start(), item(0), item(1)):
                await call.write(request)
            await eventually(lambda: provider.under_way == 2)
            network.close()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            await eventually(lambda: provider.under_way == 0)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(provider.bodies) == 2


async def test_the_whole_batch_stays_under_the_limits_of_its_run(
    stub: Any, provider: PlayedModel
) -> None:
    """The published failure: four of five concurrent calls were admitted over a cap."""

    async def spend_all(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        tokens = {"prompt_tokens": 20, "completion_tokens": request.completion_tokens_max}
        return await answers("x", usage=tokens)(http, request)

    provider.usual = spend_all
    requests = [start(), *(item(i, "x" * 4, output_tokens_max=80) for i in range(50))]

    responses = await answered(stub, requests, tokens_max=1000)

    paid = [r.generation.usage for r in responses if r.HasField("generation")]
    spent = sum(usage.input_tokens + usage.output_tokens for usage in paid)
    assert spent == 1000, "ten calls of 100 fit exactly"
    refusals = [ReceivedError(r.error) for r in responses if r.HasField("error")]
    assert {error.reason_name for error in refusals} == {"ERROR_REASON_RUN_LIMIT_EXCEEDED"}
    assert {json.dumps(error.metadata, sort_keys=True) for error in refusals} == {
        '{"limit": "tokens_max", "spent": "1000", "value": "1000"}'
    }
    assert len(provider.bodies) == 10, "refused before anything was sent"


async def test_a_reader_that_pauses_holds_the_batch_up(stub: Any, provider: PlayedModel) -> None:
    """Flow control reaches from the reader to the sender: nothing is piled up in between."""
    big = "x" * 500_000
    call = stub.BatchGenerate(metadata=metadata(), timeout=TIMEOUT_S)
    await call.write(start(concurrency_max=2))
    writing = asyncio.create_task(_write(call, [item(index, big) for index in range(40)]))
    await eventually(lambda: len(provider.bodies) > 2)
    asked_before_reading = await _at_rest(lambda: len(provider.bodies))

    responses = [response async for response in call]
    await writing

    assert asked_before_reading < 40
    assert len(responses) == 40


async def _write(call: Any, requests: list[pb2.BatchGenerateRequest]) -> None:
    for request in requests:
        await call.write(request)
    await call.done_writing()


async def _at_rest(count: Any) -> int:
    """Return a count once it has stayed the same for a while."""
    seen = [-1]

    def is_same() -> bool:
        seen.append(count())
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    await eventually(is_same)
    return int(seen[-1])
