"""The gateway in front of a provider that fails: what is tried again, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from common.errors import ReceivedError
from tests.support.gateway import config_file, gateway_service, generate, metadata, stream_generate
from tests.support.gateway_calls import TIMEOUT_S, error_of, generation
from tests.support.played_model import (
    Behaviour,
    Gate,
    PlayedModel,
    answers,
    fails,
    resets,
    sends,
    streams,
    text_chunk,
)


def named(error: ReceivedError, *keys: str) -> list[str]:
    return [error.metadata[key] for key in keys]


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
    # On a busy machine it may pass before anybody is asked.
    assert len(provider.bodies) <= 1
