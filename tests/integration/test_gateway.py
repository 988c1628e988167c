"""The gateway over a real port, in front of a provider that behaves, and callers that misbehave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1 import generation_pb2

from common.config import Secret
from common.run_token import RUN_TOKEN_METADATA, RunTokenSigner
from tests.support.eventually import eventually
from tests.support.gateway import (
    config_file,
    gateway_service,
    generate,
    metadata,
    stream_generate,
    token,
    violated_fields,
)
from tests.support.gateway_calls import TIMEOUT_S, error_of, generation
from tests.support.played_model import Gate, PlayedModel, answers, ends, sends, streams, text_chunk

STOPPED = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


async def test_a_prompt_is_answered_with_its_usage_and_cost(
    stub: Any, provider: PlayedModel
) -> None:
    answer = await generation(stub)

    assert answer.text == "hello there"
    assert answer.finish_reason == generation_pb2.Generation.FINISH_REASON_STOP
    assert answer.usage == generation_pb2.Usage(
        input_tokens=10, output_tokens=3, cost_usd_nanos=16_000, calls=1
    )
    assert (answer.model, answer.tier, answer.attempts) == ("models/m0", "sub", 1)
    assert answer.elapsed.ToNanoseconds() > 0
    assert provider.bodies[0]["model"] == "id-0"
    assert provider.headers[0]["authorization"] == "Bearer sk-provider-secret"


async def test_each_turn_of_a_run_is_asked_with_all_that_was_said(
    stub: Any, provider: PlayedModel
) -> None:
    said = [f"said {number}" for number in range(9)]
    turns = [said[:length] for length in (3, 5, 7, 9)] + [["other", *said[1:]], said[:4]]
    for texts in turns:
        request = generate()
        del request.prompt.messages[:]
        for text in texts:
            request.prompt.messages.add(role=generation_pb2.Message.ROLE_USER, text=text)
        await stub.Generate(request, metadata=metadata(), timeout=TIMEOUT_S)

    sent = [[message["content"] for message in body["messages"]] for body in provider.bodies]
    assert sent == turns


async def test_a_deployment_can_be_asked_by_name(pooled: Any) -> None:
    answer = await generation(pooled, tier="models/m1")

    assert (answer.text, answer.model, answer.tier) == ("from the second", "models/m1", "")


async def test_a_stream_begins_with_start_and_ends_with_the_whole(
    stub: Any, provider: PlayedModel
) -> None:
    provider.plan(answers("one two three", reasoning="hmm"))

    call = stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=TIMEOUT_S)
    events = [event async for event in call]

    assert events[0].start.model == "models/m0"
    assert events[1].reasoning_delta == "hmm"
    assert "".join(event.text_delta for event in events[2:-1]) == "one two three"
    assert [event.WhichOneof("event") for event in events].count("generation") == 1
    assert events[-1].generation.text == "one two three"
    assert events[-1].generation.reasoning == "hmm"
    assert events[-1].generation.usage.cost_usd_nanos == 16_000


async def test_an_empty_answer_still_has_a_start(stub: Any, provider: PlayedModel) -> None:
    provider.plan(answers(""))

    call = stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=TIMEOUT_S)

    assert [event.WhichOneof("event") async for event in call] == ["start", "generation"]


async def test_a_provider_that_does_not_stream_is_taken_whole(
    stub: Any, provider: PlayedModel
) -> None:
    """Some compatible servers ignore `stream`."""
    body = (
        b'{"choices":[{"message":{"content":"whole"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    )
    provider.plan(sends(body))

    call = stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=TIMEOUT_S)

    assert [event async for event in call][-1].generation.text == "whole"


async def test_a_connection_is_used_again(stub: Any, provider: PlayedModel) -> None:
    """Streams are read past [DONE]; else each call would pay for a new connection."""
    ports = set()

    async def remember(http: Any, request: Any) -> Any:
        ports.add(http.transport.get_extra_info("peername")[1])
        return await answers("x")(http, request)

    provider.usual = remember
    for _ in range(3):
        await generation(stub)
        call = stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=TIMEOUT_S)
        async for _ in call:
            pass

    assert len(ports) == 1


async def test_usage_that_is_not_reported_is_estimated(stub: Any, provider: PlayedModel) -> None:
    provider.plan(answers("twelve bytes", usage=None))

    usage = (await generation(stub, text="x" * 400)).usage

    assert usage.estimated
    assert (usage.input_tokens, usage.output_tokens) == (101, 3)
    assert usage.cost_usd_nanos == 101_000 + 6_000


async def test_a_usage_of_zero_is_a_usage(stub: Any, provider: PlayedModel) -> None:
    """Cached answers of some providers are free."""
    provider.plan(answers("free", usage={"prompt_tokens": 0, "completion_tokens": 0}))

    usage = (await generation(stub)).usage

    assert usage == generation_pb2.Usage(calls=1)


async def test_a_failed_attempt_that_reported_its_usage_is_counted(
    stub: Any, provider: PlayedModel
) -> None:
    provider.plan(answers("half", finish_reason=None))

    usage = (await generation(stub)).usage

    assert (usage.input_tokens, usage.output_tokens) == (20, 6)
    assert usage.cost_usd_nanos == 32_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "missing"),
        ("nonsense", "malformed"),
        (RunTokenSigner(Secret("another key " * 4)).mint(token()), "forged"),
        (dict(metadata(expires_at=1.0))[RUN_TOKEN_METADATA], "expired"),
    ],
    ids=["missing", "malformed", "forged", "expired"],
)
async def test_a_call_without_a_good_run_token_is_refused(
    stub: Any, provider: PlayedModel, text: str | None, problem: str
) -> None:
    carried = [] if text is None else [(RUN_TOKEN_METADATA, text)]
    requests = iter([pb2.BatchGenerateRequest(start=pb2.BatchStart())])
    for call in (
        stub.Generate(generate(), metadata=carried, timeout=TIMEOUT_S),
        stub.StreamGenerate(stream_generate(), metadata=carried, timeout=TIMEOUT_S),
        stub.BatchGenerate(requests, metadata=carried, timeout=TIMEOUT_S),
        stub.ListModels(pb2.ListModelsRequest(), metadata=carried, timeout=TIMEOUT_S),
    ):
        error = await error_of(call)

        assert error.code is grpc.StatusCode.UNAUTHENTICATED
        assert error.reason_name == "ERROR_REASON_UNAUTHENTICATED"
        assert error.metadata == {"problem": problem}
    assert provider.bodies == []


@pytest.mark.parametrize("tier", ["root", "models/m0"])
async def test_a_tier_that_the_run_token_lacks_is_denied(stub: Any, tier: str) -> None:
    carried = metadata(tiers=())

    error = await error_of(stub.Generate(generate(tier=tier), metadata=carried, timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert error.reason_name == "ERROR_REASON_PERMISSION_DENIED"
    kind = "model" if tier.startswith("models/") else "tier"
    assert error.metadata == {"permission": f"{kind}:{tier}"}


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("cheap", {"tier": "cheap", "offered": "root, sub"}),
        ("models/none", {"model": "models/none", "offered": "models/m0"}),
    ],
)
async def test_a_model_that_is_not_offered_is_named_with_those_that_are(
    stub: Any, tier: str, expected: dict[str, str]
) -> None:
    error = await error_of(
        stub.Generate(generate(tier=tier), metadata=metadata(), timeout=TIMEOUT_S)
    )

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason_name == "ERROR_REASON_MODEL_NOT_OFFERED"
    assert error.metadata == expected


async def test_every_bad_field_is_named(stub: Any) -> None:
    request = generate(temperature=2.5, stop=["a"] * 5)
    request.prompt.messages.add(role=generation_pb2.Message.ROLE_UNSPECIFIED, text="x")
    request.prompt.messages.add(role=generation_pb2.Message.ROLE_USER, text="")
    request.call.request_id = "x" * 257

    error = await error_of(stub.Generate(request, metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason_name == "ERROR_REASON_INVALID_FIELD"
    assert violated_fields(error.status) == {
        "prompt.messages[1].role",
        "prompt.messages[2].text",
        "prompt.temperature",
        "prompt.stop",
        "call.request_id",
    }


async def test_models_are_listed_by_name_in_pages(pooled: Any) -> None:
    request = pb2.ListModelsRequest(page_size=1)
    first = await pooled.ListModels(request, metadata=metadata(), timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    last = await pooled.ListModels(request, metadata=metadata(), timeout=TIMEOUT_S)

    assert [model.name for model in (*first.models, *last.models)] == ["models/m0", "models/m1"]
    assert last.next_page_token == ""
    assert list(first.models[0].tiers) == ["root", "sub"]
    assert first.models[0].output_usd_nanos_per_million_tokens == 2_000_000_000


async def test_only_permitted_models_are_listed(pooled: Any) -> None:
    carried = metadata(tiers=("models/m1",))

    listed = await pooled.ListModels(pb2.ListModelsRequest(), metadata=carried, timeout=TIMEOUT_S)

    assert [model.name for model in listed.models] == ["models/m1"]


@pytest.mark.parametrize(("field", "value"), [("page_size", -1), ("page_token", "!")])
async def test_a_bad_page_is_refused(stub: Any, field: str, value: Any) -> None:
    request = pb2.ListModelsRequest(**{field: value})

    error = await error_of(stub.ListModels(request, metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_fields(error.status) == {field}


async def test_a_caller_who_goes_away_leaves_the_real_usage_behind(
    stub: Any, provider: PlayedModel
) -> None:
    """Otherwise a run could spend without end by hanging up."""
    gate = Gate(answers("paid all the same"))
    provider.plan(gate)
    limited = metadata(tokens_max=5000)
    call = stub.Generate(generate(), metadata=limited, timeout=TIMEOUT_S)
    await gate.reached.wait()
    call.cancel()
    gate.opened.set()

    await eventually(lambda: provider.under_way == 0)
    # What is left after 13 tokens: one more than that is refused, with the spent sum.
    error = await error_of(
        stub.Generate(generate(output_tokens_max=5000), metadata=limited, timeout=TIMEOUT_S)
    )

    assert error.reason_name == "ERROR_REASON_RUN_LIMIT_EXCEEDED"
    assert error.metadata == {"limit": "tokens_max", "value": "5000", "spent": "13"}


async def test_a_stream_whose_reader_goes_away_is_paid_as_well(
    stub: Any, provider: PlayedModel
) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 90}}
    rest = Gate(ends)
    provider.plan(streams([text_chunk("a"), STOPPED, usage], then=rest))
    limited = metadata(tokens_max=5000)
    call = stub.StreamGenerate(stream_generate(), metadata=limited, timeout=TIMEOUT_S)
    await call.read()
    call.cancel()
    rest.opened.set()

    await eventually(lambda: provider.under_way == 0)
    error = await error_of(
        stub.Generate(generate(output_tokens_max=5000), metadata=limited, timeout=TIMEOUT_S)
    )

    assert error.metadata["spent"] == "100"


async def test_an_exchange_nobody_waits_for_ends_after_its_time(
    provider: PlayedModel, tmp_path: Path
) -> None:
    provider.plan(Gate(answers("never")))
    path = config_file(tmp_path / "c.toml", [provider.base_url])
    async with gateway_service(path, abandoned_drain_s=0.05) as stub:
        limited = metadata(tokens_max=5000)
        call = stub.Generate(generate(text="x" * 400), metadata=limited, timeout=TIMEOUT_S)
        await eventually(lambda: provider.under_way == 1)
        call.cancel()
        await eventually(lambda: provider.under_way == 0)
        error = await error_of(
            stub.Generate(generate(output_tokens_max=5000), metadata=limited, timeout=TIMEOUT_S)
        )

    assert error.metadata["spent"] == "101", "what was sent is paid, by estimate"
