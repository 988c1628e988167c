"""The bare socket that the gateway's figures stand beside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fathom_demo.scripted_model import Script, ScriptedModel

from bench.gateway_http import HttpEndpoint
from tests.support.eventually import eventually


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    policies = {"whole": Script(["yes"], "cycle"), "streamed": Script(["w" * 640], "cycle")}
    async with ScriptedModel(policies=policies, latency_ms=50) as served:
        yield served


def endpoint(model: ScriptedModel, name: str = "whole") -> HttpEndpoint:
    path = "/v1/chat/completions"
    return HttpEndpoint(model.address, model=name, stream_model="streamed", path=path, key="none")


async def test_answers_are_read_over_one_connection(model: ScriptedModel) -> None:
    """A connection a call would be a higher floor than there is."""
    bare = endpoint(model)

    for _ in range(3):
        await bare.ask(["hello", "again"])

    assert bare.connections == 1
    await bare.close()


async def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    """Peers close theirs after a few seconds, while something else is measured."""
    body = b'{"choices": [{"message": {"content": "yes"}}]}'
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    bare = HttpEndpoint(f"{host}:{port}", model="m", stream_model="m", path="/", key="none")
    async with server:
        for _ in range(2):
            await bare.ask(["hello"])
            await eventually(lambda: bare.idle == 0)
        await bare.close()

    assert bare.connections == 2


async def test_a_streams_first_piece_comes_after_the_models_time(model: ScriptedModel) -> None:
    bare = endpoint(model)

    first = await asyncio.gather(*(bare.first_piece_s(["hello"]) for _ in range(3)))

    assert all(0.05 <= each < 5 for each in first)
    assert bare.connections == 3
    await bare.close()


async def test_what_is_no_answer_is_no_sample(model: ScriptedModel) -> None:
    """An error is quick to give, and would make a low floor."""
    bare = endpoint(model, "unknown")

    with pytest.raises(RuntimeError, match="did not answer"):
        await bare.ask(["hello"])

    await bare.close()


async def test_what_is_no_stream_is_no_sample(model: ScriptedModel) -> None:
    path = "/v1/nothing"
    lost = HttpEndpoint(model.address, model="whole", stream_model="whole", path=path, key="none")

    with pytest.raises(RuntimeError, match="did not answer"):
        await lost.first_piece_s(["hello"])

    await lost.close()
