"""The way to a real endpoint; and that the provider in memory, which other tests use, keeps the
same contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from fathom_demo.scripted_model.openai_wire import ChatRequest

from common.config import Secret
from llm_gateway import openai_provider
from llm_gateway.answers import Delta, FinishReason, Tokens
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.openai_provider import OpenAIProvider
from llm_gateway.provider import Provider
from tests.support.eventually import eventually
from tests.support.gateway import MemoryProvider, completion, deployment, endpoint, prompt
from tests.support.played_model import Gate, PlayedModel, answers, ends, fails, sends, streams
from tests.support.played_model import text_chunk as chunk

STOPPED = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@asynccontextmanager
async def reaching(serving: PlayedModel, **changes: Any) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(endpoint(base_url=serving.base_url, **changes))
    try:
        yield provider
    finally:
        await provider.close()


@pytest.fixture(params=["real", "memory"])
async def contracted(request: pytest.FixtureRequest) -> AsyncIterator[Provider]:
    """Answers "hello there" for 10 tokens sent and 3 received, and fails the second time."""
    if request.param == "memory":
        memory = MemoryProvider()
        failure = ProviderError(FailureKind.SERVER_ERROR, "HTTP 500", http_status=500)
        memory.plan(completion(), failure)
        yield memory
        return
    async with PlayedModel() as serving, reaching(serving) as provider:
        serving.plan(answers("hello there"), fails(500))
        yield provider


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_provider_answers_and_fails_as_its_contract_says(
    contracted: Provider, streamed: bool
) -> None:
    deltas: list[Delta] = []

    on_delta = deltas.append if streamed else None
    answer = await contracted.complete(deployment(), prompt(), 50, on_delta)
    with pytest.raises(ProviderError) as caught:
        await contracted.complete(deployment(), prompt(), 50, on_delta)

    assert answer.text == "hello there"
    assert answer.finish_reason is FinishReason.STOP
    assert answer.tokens == Tokens(input=10, output=3)
    assert "".join(delta.text for delta in deltas) == ("hello there" if streamed else "")
    assert (caught.value.kind, caught.value.http_status) == (FailureKind.SERVER_ERROR, 500)


async def test_an_endpoint_gets_its_key_and_headers() -> None:
    async with PlayedModel() as serving:
        changes = {"api_key": Secret("sk-1"), "headers": {"x-team": "search"}}
        async with reaching(serving, **changes) as provider:
            await provider.complete(deployment(), prompt(), 50, None)

    assert serving.headers[0]["authorization"] == "Bearer sk-1"
    assert serving.headers[0]["x-team"] == "search"


async def test_each_request_has_its_own_body_under_the_same_head() -> None:
    """The head is made once."""
    async with PlayedModel() as serving, reaching(serving, api_key=Secret("sk-1")) as provider:
        for text in ("first", "the second, which is longer"):
            await provider.complete(deployment(), prompt(text), 50, None)

    sent = [body["messages"][0]["content"] for body in serving.bodies]
    heads = [
        {name: value for name, value in headers.items() if name != "content-length"}
        for headers in serving.headers
    ]
    assert sent == ["first", "the second, which is longer"]
    assert heads[0] == heads[1]
    assert heads[0]["authorization"] == "Bearer sk-1"


async def test_an_endpoint_without_a_key_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment holds for OpenAI must not reach somebody else's server."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-environment")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-the-environment")
    async with PlayedModel() as serving, reaching(serving) as provider:
        await provider.complete(deployment(), prompt(), 50, None)

    assert "authorization" not in serving.headers[0]
    assert "of-the-environment" not in str(serving.headers[0])


async def test_an_organisation_is_sent_where_the_file_says_so() -> None:
    async with PlayedModel() as serving:
        headers = {"OpenAI-Organization": "org-1"}
        async with reaching(serving, headers=headers) as provider:
            await provider.complete(deployment(), prompt(), 50, None)

    assert serving.headers[0]["openai-organization"] == "org-1"


@pytest.mark.parametrize(("bytes_max", "is_read"), [(100, True), (99, False)])
async def test_a_reply_has_a_largest_size(
    monkeypatch: pytest.MonkeyPatch, bytes_max: int, is_read: bool
) -> None:
    monkeypatch.setattr(openai_provider, "REPLY_BYTES_MAX", bytes_max)
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'.ljust(100)
    async with PlayedModel(sends(body)) as serving, reaching(serving) as provider:
        if is_read:
            assert (await provider.complete(deployment(), prompt(), 50, None)).text == "x"
        else:
            with pytest.raises(ProviderError) as caught:
                await provider.complete(deployment(), prompt(), 50, None)
            assert (caught.value.kind, caught.value.problem) == (
                FailureKind.BROKEN_REPLY,
                "too_large",
            )


@pytest.mark.parametrize(("status", "kind"), [(500, "server_error"), (302, "rejected")])
async def test_an_error_without_end_is_read_to_its_beginning(status: int, kind: str) -> None:
    """The SDK reads errors whole: one of them could take all memory."""

    async def behave(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(http)
        while True:
            await response.write(b"x" * 65_536)

    async with PlayedModel(behave) as serving, reaching(serving, timeout_s=60) as provider:
        with pytest.raises(ProviderError) as caught:
            await asyncio.wait_for(provider.complete(deployment(), prompt(), 50, None), 30)
        await eventually(lambda: serving.under_way == 0)

    assert (caught.value.kind.value, caught.value.http_status) == (kind, status)


async def test_silence_is_given_up_also_in_the_middle_of_a_stream() -> None:
    stalled = streams([chunk("a")], then=Gate(ends))
    async with PlayedModel(stalled) as serving, reaching(serving, timeout_s=1.0) as provider:
        taken = asyncio.Event()

        with pytest.raises(ProviderError) as caught:
            await provider.complete(deployment(), prompt(), 50, lambda _: taken.set())

    assert taken.is_set()
    assert caught.value.kind is FailureKind.TIMED_OUT


async def test_a_cancelled_exchange_closes_its_connection() -> None:
    """Most providers stop, and stop billing, when the connection goes."""
    gate = Gate(answers("never"))
    async with PlayedModel(gate) as serving, reaching(serving) as provider:
        asking = asyncio.create_task(provider.complete(deployment(), prompt(), 50, None))
        await gate.reached.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: serving.under_way == 0)

    assert asking.cancelled()
