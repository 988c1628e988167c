"""The scripted model server as clients see it: over real HTTP, mostly through OpenAI's SDK."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest
from fathom_demo.scripted_model import FaultRule, Reply, Script, ScriptedModel
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.support.eventually import eventually

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say something."}]


@asynccontextmanager
async def client_of(server: ScriptedModel, timeout_s: float = 10) -> AsyncIterator[AsyncOpenAI]:
    """Open the server and yield an SDK client that never retries."""
    async with (
        server,
        AsyncOpenAI(
            base_url=server.base_url, api_key="sk-secret", max_retries=0, timeout=timeout_s
        ) as client,
    ):
        yield client


async def text_of_stream(client: AsyncOpenAI, model: str = "scripted-root") -> str:
    """Return what a streamed reply says."""
    stream = await client.chat.completions.create(model=model, messages=ASK, stream=True)
    return "".join([part.choices[0].delta.content or "" async for part in stream if part.choices])


async def test_the_sdk_reads_a_whole_reply() -> None:
    """The plainest exchange, with usage from the real sizes."""
    async with client_of(ScriptedModel(["Hello, Zoë."])) as client:
        reply = await client.chat.completions.create(model="scripted-root", messages=ASK)

    assert reply.choices[0].message.content == "Hello, Zoë."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (8, 3)


async def test_the_sdk_reads_a_streamed_reply_with_usage() -> None:
    """Chunks, finish reason and the usage chunk come in the form that the SDK knows."""
    text = "One line of many.\n" * 100
    async with client_of(ScriptedModel([text])) as client:
        stream = await client.chat.completions.create(
            model="scripted-root",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [part async for part in stream]

    choices = [part.choices[0] for part in parts if part.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == text
    assert choices[-1].finish_reason == "stop"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == len(text) / 4
    assert len(parts) > 10


async def test_the_models_say_that_they_are_no_language_models() -> None:
    """Whoever lists them is told."""
    async with client_of(ScriptedModel()) as client:
        models = {model.id: model async for model in await client.models.list()}

    assert set(models) == {"scripted-root", "scripted-sub"}
    assert all("Not a language model" in str(model.to_dict()) for model in models.values())


async def test_an_unknown_model_is_not_found() -> None:
    """As with a real provider."""
    async with client_of(ScriptedModel()) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-99", messages=ASK)

    assert caught.value.code == "model_not_found"


async def test_a_body_that_is_no_request_is_refused() -> None:
    """With a reason, not with a broken connection."""
    async with ScriptedModel() as server, aiohttp.ClientSession() as session:
        url = f"{server.base_url}/chat/completions"
        async with session.post(url, data=b"{") as response:
            body = await response.json()

    assert response.status == 400
    assert "not JSON" in body["error"]["message"]


async def test_a_script_that_ended_is_an_error() -> None:
    """A test that makes one call too many hears of it."""
    async with client_of(ScriptedModel(["only"])) as client:
        await client.chat.completions.create(model="scripted-root", messages=ASK)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="scripted-root", messages=ASK)

    assert caught.value.code == "script_ended"


async def test_requests_are_recorded_without_secrets() -> None:
    """Tests read what was asked; keys appear nowhere."""
    server = ScriptedModel(["x"])
    async with client_of(server) as client, aiohttp.ClientSession() as session:
        await client.chat.completions.create(model="scripted-root", messages=ASK)
        async with session.get(f"http://{server.address}/_requests") as response:
            shown = await response.text()

    assert server.requests[0].body["messages"] == ASK
    assert json.loads(shown)[0]["headers"]["authorization"] == "***"
    assert "sk-secret" not in shown


async def test_counters_tell_calls_tokens_and_faults() -> None:
    """What a client claims to have used can be compared with what was served."""
    server = ScriptedModel(["12345678", "x"], faults=[FaultRule("no_usage", nth=(2,))])
    async with client_of(server) as client, aiohttp.ClientSession() as session:
        for _ in range(2):
            await client.chat.completions.create(model="scripted-root", messages=ASK)
        async with session.get(f"http://{server.address}/_counters") as response:
            counters = await response.json()

    assert counters["requests.scripted-root"] == 2
    assert counters["completion_tokens"] == 3
    assert counters["faults.no_usage"] == 1
    assert counters["in_flight"] == 0


async def test_64_slow_calls_run_side_by_side() -> None:
    """Latency is waiting, not work: no call queues behind another."""
    server = ScriptedModel(
        policies={"scripted-sub": Script(["x"], "cycle")},
        latency_ms_by_model={"scripted-sub": 600_000},
    )
    async with client_of(server) as client:
        calls = [
            asyncio.create_task(client.chat.completions.create(model="scripted-sub", messages=ASK))
            for _ in range(64)
        ]
        await eventually(lambda: server.counters["in_flight"] == 64)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_one_connection_serves_many_requests() -> None:
    """A client that keeps its connection pays for it once, streams included."""
    server = ScriptedModel(policies={"m": Script(["x"], "cycle")})
    trace = aiohttp.TraceConfig()
    opened = 0

    async def count(*_: object) -> None:
        nonlocal opened
        opened += 1

    trace.on_connection_create_end.append(count)
    async with server, aiohttp.ClientSession(trace_configs=[trace]) as session:
        for number in range(6):
            body = {"model": "m", "messages": ASK, "stream": number % 2 == 0}
            async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
                await response.read()

    assert opened == 1


@pytest.mark.parametrize(
    ("rule", "error", "status"),
    [
        (FaultRule("status", status=429, code="rate_limit_exceeded"), openai.RateLimitError, 429),
        (FaultRule("status", status=429, code="insufficient_quota"), openai.RateLimitError, 429),
        (FaultRule("status", status=401), openai.AuthenticationError, 401),
        (FaultRule("status", status=503), openai.InternalServerError, 503),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_status_fault_reaches_the_client(
    rule: FaultRule, error: type[openai.APIStatusError], status: int, is_stream: bool
) -> None:
    """With status, code and nothing else served."""
    async with client_of(ScriptedModel(["x"], faults=[rule])) as client:
        with pytest.raises(error) as caught:
            await client.chat.completions.create(
                model="scripted-root", messages=ASK, stream=is_stream
            )

    assert (caught.value.status_code, caught.value.code) == (status, rule.code)


async def test_retry_hints_reach_the_client() -> None:
    """A gateway's retry rules are tested against these headers."""
    rule = FaultRule("status", status=429, retry_after="2", retry_after_ms="1500")
    async with client_of(ScriptedModel(["x"], faults=[rule])) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="scripted-root", messages=ASK)

    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1500")


async def test_a_hanging_call_lasts_until_the_client_leaves() -> None:
    """The server then drops it, so that nothing is left behind."""
    server = ScriptedModel(["x"], faults=[FaultRule("hang")])
    async with client_of(server, timeout_s=0.2) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="scripted-root", messages=ASK)
        await eventually(lambda: server.counters["in_flight"] == 0)


async def test_closing_the_server_ends_hanging_calls_at_once() -> None:
    """A test with a hanging call must not wait for the drain time."""
    server = ScriptedModel(["x"], faults=[FaultRule("hang")], drain_s=30)
    async with AsyncOpenAI(base_url="http://unused", api_key="k", max_retries=0) as client:
        async with server:
            call = asyncio.create_task(
                client.with_options(base_url=server.base_url).chat.completions.create(
                    model="scripted-root", messages=ASK
                )
            )
            await eventually(lambda: server.counters["in_flight"] == 1)
            started = time.monotonic()
        with pytest.raises(openai.APIConnectionError):
            await call

    assert time.monotonic() - started < 20


@pytest.mark.parametrize("effect", ["reset", "cut"])
async def test_a_connection_that_breaks_is_seen_as_such(effect: str) -> None:
    """Before the answer, and halfway through it."""
    async with client_of(ScriptedModel(["x" * 500], faults=[FaultRule(effect)])) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(model="scripted-root", messages=ASK)


async def test_a_cut_stream_starts_and_does_not_end() -> None:
    """Some text arrives, then the connection breaks without an end mark."""
    async with ScriptedModel(["x" * 500], faults=[FaultRule("cut")]) as server:
        seen = b""
        async with aiohttp.ClientSession() as session:
            body = {"model": "scripted-root", "messages": ASK, "stream": True}
            async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
                with pytest.raises(aiohttp.ClientPayloadError):
                    async for data in response.content.iter_any():
                        seen += data

    assert b'"content":"xxx' in seen
    assert b"[DONE]" not in seen
    assert b'"finish_reason":"stop"' not in seen


@pytest.mark.parametrize("is_stream", [False, True])
async def test_garbage_is_not_json(is_stream: bool) -> None:
    """A 200 that no client can read."""
    async with (
        ScriptedModel(["x"], faults=[FaultRule("garbage")]) as server,
        aiohttp.ClientSession() as session,
    ):
        body = {"model": "scripted-root", "messages": ASK, "stream": is_stream}
        async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
            text = await response.text()

    assert response.status == 200
    assert "no JSON here" in text


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_page_of_html_says_that_it_is_one(is_stream: bool) -> None:
    """What a proxy in front of a provider sends, with status 200."""
    async with (
        ScriptedModel(["x"], faults=[FaultRule("wrong_type")]) as server,
        aiohttp.ClientSession() as session,
    ):
        body = {"model": "scripted-root", "messages": ASK, "stream": is_stream}
        async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
            assert response.content_type == "text/html"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_stalled_answer_begins_and_lasts_until_the_server_ends(is_stream: bool) -> None:
    """Hanging in the middle is another fault than hanging before: something was already paid."""
    seen = b""
    async with aiohttp.ClientSession() as session:
        async with ScriptedModel(["x" * 500], faults=[FaultRule("stall")]) as server:
            body = {"model": "scripted-root", "messages": ASK, "stream": is_stream}
            response = await session.post(f"{server.base_url}/chat/completions", json=body)
            while b"chat.completion" not in seen:
                seen += await response.content.readany()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()

    assert b"[DONE]" not in seen


@pytest.mark.parametrize(
    "rule",
    [FaultRule("trickle", pause_ms=0), FaultRule("huge", size_bytes=1 << 20)],
    ids=lambda rule: rule.effect,
)
async def test_an_answer_in_an_odd_form_is_still_the_answer(rule: FaultRule) -> None:
    """Pieces cut anywhere, and a megabyte of white space, are legal both whole and streamed."""
    async with client_of(ScriptedModel(["é" * 300, "é" * 300], faults=[rule])) as client:
        reply = await client.chat.completions.create(model="scripted-root", messages=ASK)
        assert await text_of_stream(client) == "é" * 300

    assert reply.choices[0].message.content == "é" * 300


async def test_duplicated_pieces_come_twice_and_the_usage_once() -> None:
    """Whoever counts pieces instead of reading the usage charges double."""
    async with client_of(ScriptedModel(["abcd"], faults=[FaultRule("duplicate")])) as client:
        stream = await client.chat.completions.create(
            model="scripted-root",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [part async for part in stream]

    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == "abcdabcd"
    assert [part.usage.completion_tokens for part in parts if part.usage] == [1]


async def test_a_usage_of_zero_is_told_as_such() -> None:
    """An explicit zero is another thing than a missing usage."""
    async with client_of(ScriptedModel(["abcd"], faults=[FaultRule("zero_usage")])) as client:
        reply = await client.chat.completions.create(model="scripted-root", messages=ASK)

    assert reply.usage is not None
    assert reply.usage.total_tokens == 0


@pytest.mark.parametrize(
    ("rule", "content", "finish_reason", "has_usage"),
    [
        (FaultRule("empty"), "", "stop", True),
        (FaultRule("no_usage"), "abcd", "stop", False),
        (FaultRule("finish_reason", finish_reason="length"), "ab", "length", True),
        (FaultRule("finish_reason", finish_reason="none"), "abcd", None, True),
    ],
)
async def test_a_content_fault_changes_the_reply(
    rule: FaultRule, content: str, finish_reason: str | None, has_usage: bool
) -> None:
    """The answer is whole as far as HTTP goes."""
    async with client_of(ScriptedModel(["abcd"], faults=[rule])) as client:
        reply = await client.chat.completions.create(model="scripted-root", messages=ASK)

    assert reply.choices[0].message.content == content
    assert reply.choices[0].finish_reason == finish_reason
    assert (reply.usage is not None) is has_usage


async def test_a_fault_by_number_strikes_once() -> None:
    """A retry after it succeeds."""
    rule = FaultRule("status", status=500, nth=(1,))
    async with client_of(ScriptedModel(["x"], faults=[rule])) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="scripted-root", messages=ASK)

        assert await text_of_stream(client) == "x"


async def test_a_reply_may_have_a_latency_of_its_own() -> None:
    """A script can make one call slow."""
    async with client_of(ScriptedModel([Reply("x", latency_ms=80)])) as client:
        started = time.monotonic()
        await client.chat.completions.create(model="scripted-root", messages=ASK)

    assert time.monotonic() - started >= 0.08


@asynccontextmanager
async def command(*options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the command; its process ends with the block at the latest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fathom_demo.scripted_model", *options, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_command_serves_and_drains_on_sigterm(tmp_path: Path) -> None:
    """A call in flight ends well, and the process with status 0."""
    address_file = tmp_path / "address"
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"content": "slow but whole", "latency_ms": 300}]))
    async with command("--address-file", str(address_file), "--script", str(script)) as process:
        await eventually(address_file.exists)
        address = address_file.read_text().strip()
        async with AsyncOpenAI(base_url=f"http://{address}/v1", api_key="k") as client:
            call = asyncio.create_task(text_of_stream(client))
            await eventually(lambda: _requests_at(address))
            process.send_signal(signal.SIGTERM)

            assert await call == "slow but whole"
        _, stderr = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 0
    assert "not a language model" in stderr.decode()


async def _requests_at(address: str) -> bool:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/_counters") as response,
    ):
        return bool((await response.json()).get("requests"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--fault", "effect=explode"), "effect: 'explode' is none of"),
        (("--listen", "8080"), "listen: '8080' is not host:port"),
        (("--script", "/nowhere/script.json"), "No such file"),
        (("--model-latency-ms", "scripted-sub"), "scripted-sub: is not MODEL=MS"),
    ],
)
async def test_a_wrong_option_ends_the_command(options: tuple[str, ...], reason: str) -> None:
    """With status 2 and a reason, before it listens."""
    async with command(*options) as process:
        _, stderr = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 2
    assert re.search(reason, stderr.decode())
