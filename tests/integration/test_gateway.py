"""The gateway over a real port, in front of a provider that behaves and misbehaves.

Long, because each thing that a caller can meet is a short test of its own, over one fixture.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1 import generation_pb2

from common.config import Secret
from common.errors import ReceivedError, received
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
from tests.support.played_model import (
    Behaviour,
    Gate,
    PlayedModel,
    answers,
    ends,
    fails,
    resets,
    sends,
    streams,
    text_chunk,
)

TIMEOUT_S = 30
STOPPED = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


@pytest.fixture
async def second() -> AsyncIterator[PlayedModel]:
    async with PlayedModel(answers("from the second")) as serving:
        yield serving


@pytest.fixture
async def stub(provider: PlayedModel, tmp_path: Path) -> AsyncIterator[Any]:
    """A gateway with one deployment, `m0`."""
    async with gateway_service(config_file(tmp_path / "c.toml", [provider.base_url])) as serving:
        yield serving


@pytest.fixture
async def pooled(provider: PlayedModel, second: PlayedModel, tmp_path: Path) -> AsyncIterator[Any]:
    """A gateway whose tiers have `m0` and then `m1`, at two providers."""
    urls = [provider.base_url, second.base_url]
    async with gateway_service(config_file(tmp_path / "c.toml", urls)) as serving:
        yield serving


def named(error: ReceivedError, *keys: str) -> list[str]:
    return [error.metadata[key] for key in keys]


async def error_of(call: Any) -> ReceivedError:
    """Return the error that a unary call, or the reading of a stream, ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for _ in call:
                pass
    return received(caught.value)


async def generation(stub: Any, **fields: Any) -> generation_pb2.Generation:
    response = await stub.Generate(generate(**fields), metadata=metadata(), timeout=TIMEOUT_S)
    found: generation_pb2.Generation = response.generation
    return found


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


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (fails(500), "server error"),
        (fails(408), "timeout status"),
        (fails(409), "conflict"),
        (fails(429, headers={"retry-after-ms": "10"}), "rate, milliseconds"),
        (fails(429, headers={"retry-after": "0.01"}), "rate, seconds"),
        (fails(429, headers={"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), "rate, date"),
        (fails(429, {"details": [{"retryDelay": "0.01s"}]}), "rate, body"),
        (resets(), "reset"),
        (sends(b"{oops"), "garbage"),
        (answers("half of", finish_reason=None), "no finish reason"),
        (streams([text_chunk("")], then=resets()), "cut before anything"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_passing_fault_is_retried(
    stub: Any, provider: PlayedModel, fault: Behaviour, name: str, streamed: bool
) -> None:
    """The gateway owns the retries; its callers see the answer only."""
    if streamed and name == "no finish reason":
        fault = streams([text_chunk("")])
    provider.plan(fault)

    if streamed:
        call = stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=TIMEOUT_S)
        answer = [event async for event in call][-1].generation
    else:
        answer = await generation(stub)

    assert (answer.text, answer.attempts) == ("hello there", 2)


async def test_retries_end_with_the_providers_name_and_the_attempts(
    stub: Any, provider: PlayedModel
) -> None:
    provider.usual = fails(500, {"message": "internal detail of the provider"})

    error = await error_of(stub.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason_name == "ERROR_REASON_PROVIDER_UNAVAILABLE"
    assert error.metadata == {"provider": "p0", "model": "m0", "attempts": "3"}
    assert error.retry_after_s is not None
    assert "detail" not in str(error)


async def test_an_unreachable_provider_is_unavailable(tmp_path: Path) -> None:
    """Nothing of the libraries' words, which hold addresses, reaches the caller."""
    async with PlayedModel() as gone:
        url = gone.base_url
    async with gateway_service(config_file(tmp_path / "c.toml", [url])) as stub:
        error = await error_of(stub.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason_name == "ERROR_REASON_PROVIDER_UNAVAILABLE"
    assert error.metadata["attempts"] == "3"
    assert "127.0.0.1" not in str(error)


async def test_a_failing_deployment_is_replaced_by_the_next(
    pooled: Any, provider: PlayedModel
) -> None:
    provider.usual = fails(500)

    answer = await generation(pooled)

    assert (answer.text, answer.model, answer.attempts) == ("from the second", "models/m1", 4)


async def test_a_long_rate_limit_is_not_waited_for(pooled: Any, provider: PlayedModel) -> None:
    provider.usual = fails(429, headers={"retry-after": "60"})

    first, second_answer = await generation(pooled), await generation(pooled)

    assert (first.model, first.attempts) == ("models/m1", 2)
    assert (second_answer.model, second_answer.attempts) == ("models/m1", 1)
    assert len(provider.bodies) == 1, "asked again although it said when to come back"


async def test_a_rate_limit_without_an_alternative_says_when_to_come_back(
    stub: Any, provider: PlayedModel
) -> None:
    provider.usual = fails(429, headers={"retry-after": "60"})

    error = await error_of(stub.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason_name == "ERROR_REASON_PROVIDER_RATE_LIMITED"
    assert error.metadata == {"provider": "p0", "model": "m0"}
    assert error.retry_after_s is not None
    assert 55 < error.retry_after_s <= 60


@pytest.mark.parametrize(
    "fault", [fails(401), fails(402), fails(403), fails(429, {"code": "insufficient_quota"})]
)
async def test_a_refused_credential_is_not_tried_again(
    stub: Any, provider: PlayedModel, fault: Behaviour
) -> None:
    provider.usual = fault

    error = await error_of(stub.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason_name == "ERROR_REASON_PROVIDER_CREDENTIAL"
    assert error.metadata == {"provider": "p0", "model": "m0"}
    assert len(provider.bodies) == 1


@pytest.mark.parametrize("status", [302, 400, 404, 422])
async def test_a_rejected_request_is_neither_retried_nor_sent_elsewhere(
    pooled: Any, provider: PlayedModel, second: PlayedModel, status: int
) -> None:
    provider.usual = fails(status, headers={"location": second.base_url + "/chat/completions"})

    error = await error_of(pooled.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason_name == "ERROR_REASON_PROVIDER_REJECTED"
    assert error.metadata == {"provider": "p0", "model": "m0", "http_status": str(status)}
    assert (len(provider.bodies), len(second.bodies)) == (1, 0)


async def test_messages_that_do_not_fit_the_window_are_named_so(
    stub: Any, provider: PlayedModel
) -> None:
    provider.usual = fails(400, {"code": "context_length_exceeded"})

    error = await error_of(stub.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason_name == "ERROR_REASON_CONTEXT_WINDOW_EXCEEDED"
    assert error.metadata == {"model": "m0"}


async def test_messages_that_do_not_fit_go_to_a_deployment_that_may_take_them(
    pooled: Any, provider: PlayedModel
) -> None:
    provider.usual = fails(400, {"code": "context_length_exceeded"})

    assert (await generation(pooled)).model == "models/m1"


@pytest.mark.parametrize(
    ("fault", "problem"),
    [(sends(b"{oops"), "not_json"), (answers("half", finish_reason=None), "no_finish_reason")],
)
async def test_a_reply_that_stays_broken_is_named_so(
    stub: Any, provider: PlayedModel, fault: Behaviour, problem: str
) -> None:
    provider.usual = fault

    error = await error_of(stub.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason_name == "ERROR_REASON_PROVIDER_BROKEN_REPLY"
    assert named(error, "provider", "model", "problem") == ["p0", "m0", problem]
    assert int(named(error, "input_tokens")[0]) > 0  # three replies were paid for


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (streams([text_chunk("half of")], then=resets()), "cut_off"),
        (streams([text_chunk("half of")]), "no_finish_reason"),
        (streams([text_chunk("half of"), "{oops"]), "not_json"),
        (streams([text_chunk("half of"), '{"error": {"message": "x"}}']), "error_in_stream"),
    ],
    ids=["reset", "ended", "garbage", "error"],
)
async def test_a_stream_that_breaks_after_its_first_piece_is_an_error(
    pooled: Any, provider: PlayedModel, second: PlayedModel, fault: Behaviour, problem: str
) -> None:
    """Another deployment's words cannot continue the first one's; a clean end would be a lie."""
    provider.usual = fault
    call = pooled.StreamGenerate(stream_generate(), metadata=metadata(), timeout=TIMEOUT_S)
    pieces = aiter(call)

    assert (await anext(pieces)).start.model == "models/m0"
    assert (await anext(pieces)).text_delta == "half of"
    error = await error_of(pieces)

    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason_name == "ERROR_REASON_PROVIDER_BROKEN_REPLY"
    assert named(error, "provider", "model", "problem") == ["p0", "m0", problem]
    assert second.bodies == []


async def test_a_silent_provider_is_given_up_and_replaced(
    provider: PlayedModel, second: PlayedModel, tmp_path: Path
) -> None:
    path = config_file(tmp_path / "c.toml", [provider.base_url, second.base_url])
    path.write_text(path.read_text().replace("timeout_s = 5", "timeout_s = 0.5"))
    provider.usual = Gate(answers("too late"))

    async with gateway_service(path, attempts_max=6) as stub:
        answer = await generation(stub)

    assert answer.model == "models/m1"
    assert answer.usage.estimated, "a provider that was asked may bill for it"


async def test_a_deadline_that_passes_is_the_callers_own(stub: Any, provider: PlayedModel) -> None:
    provider.usual = Gate(answers("too late"))

    error = await error_of(stub.Generate(generate(), metadata=metadata(), timeout=1.0))

    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(provider.bodies) == 1


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
