"""What providers do wrong, one scenario each: the gateway's answer, and what it charges for it.

The provider is the scripted model with fault rules, asked through the real service. A prompt of
five characters counts as six tokens there and the answer as 25: 56,000 nano-dollars.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.gateway.v1.quota_service_pb2 import GetUsageRequest
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub
from fathom_demo.scripted_model import FaultRule, Script, ScriptedModel

from common.errors import ReceivedError, received
from tests.support.eventually import eventually
from tests.support.gateway import (
    KEY,
    config_file,
    gateway_channel,
    generate,
    metadata,
    stream_generate,
)

TEXT = "y" * 100
COST = 6 * 1000 + 25 * 2000
ESTIMATED_INPUT = 3
OPERATOR = (("fathom-operator-key", KEY.reveal()),)


class Scene:
    """A gateway in front of one or more spoiled providers."""

    def __init__(self, channel: grpc.aio.Channel, models: list[ScriptedModel]) -> None:
        self.stub: Any = GatewayServiceStub(channel)
        self.models = models
        self._quotas: Any = QuotaServiceStub(channel)

    @property
    def calls(self) -> list[int]:
        """Requests that each provider got."""
        return [model.counters["requests"] for model in self.models]

    async def booked(self) -> tuple[int, bool]:
        """Return what the tenant has spent by the books, and whether some of it is estimated."""
        request = GetUsageRequest(parent="tenants/acme")
        request.start_time.FromSeconds(0)
        response = await self._quotas.GetUsage(request, metadata=OPERATOR, timeout=20)
        usages = [row.usage for row in response.rows]
        return sum(each.cost_usd_nanos for each in usages), any(each.estimated for each in usages)

    async def ask(self, timeout_s: float = 20.0) -> Generation:
        response = await self.stub.Generate(generate(), metadata=metadata(), timeout=timeout_s)
        generation: Generation = response.generation
        return generation

    async def refused(self, timeout_s: float = 20.0) -> ReceivedError:
        """Return how a call failed."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.ask(timeout_s)
        return received(error.value)

    async def stream(self) -> tuple[str, Generation | None, ReceivedError | None]:
        """Return the pieces of a streamed answer, its end, and how it failed."""
        text, end = "", None
        call = self.stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=20)
        try:
            async for response in call:
                text += response.text_delta
                end = response.generation if response.HasField("generation") else end
        except grpc.aio.AioRpcError as error:
            return text, end, received(error)
        return text, end, None


def model(number: int, *faults: FaultRule) -> ScriptedModel:
    """Return a provider of the deployment `m{number}`."""
    return ScriptedModel(policies={f"id-{number}": Script([TEXT] * 20)}, faults=faults)


@contextlib.asynccontextmanager
async def scene(
    path: Path, *faults: FaultRule, others: int = 0, timeout_s: int = 5, drain_s: float = 5.0
) -> AsyncIterator[Scene]:
    """Serve a gateway with one provider that has faults, and `others` that have none."""
    models = [model(0, *faults), *(model(number + 1) for number in range(others))]
    async with contextlib.AsyncExitStack() as stack:
        for each in models:
            await stack.enter_async_context(each)
        file = config_file(path / "c.toml", [each.base_url for each in models])
        file.write_text(file.read_text().replace("timeout_s = 5", f"timeout_s = {timeout_s}"))
        settings: dict[str, Any] = {"operator_key": KEY, "abandoned_drain_s": drain_s}
        channel = await stack.enter_async_context(gateway_channel(file, **settings))
        yield Scene(channel, models)


def once(effect: str, **fields: Any) -> FaultRule:
    return FaultRule(effect, nth=(1,), **fields)


@pytest.mark.parametrize(
    ("form", "wait_s"),
    [
        ({"retry_after_ms": "150"}, 0.15),
        ({"retry_after": "1"}, 1.0),
        ({"retry_after": "0.15"}, 0.15),
        ({"retry_after_date_s": 1.6}, 0.3),
        ({"retry_delay": "0.15s"}, 0.15),
        ({"retry_after_ms": "150", "retry_after": "30"}, 0.15),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
async def test_a_rate_limit_is_waited_out_in_every_form_it_is_told(
    form: dict[str, Any], wait_s: float, tmp_path: Path
) -> None:
    """The only provider there is: its own word is the floor, and the 429 costs nothing."""
    async with scene(tmp_path, once("status", status=429, **form)) as played:
        started = time.monotonic()
        answer = await played.ask()

    assert time.monotonic() - started >= wait_s
    assert (answer.text, answer.attempts, answer.usage.cost_usd_nanos) == (TEXT, 2, COST)


async def test_a_long_rate_limit_is_not_waited_for_where_another_can_answer(
    tmp_path: Path,
) -> None:
    """The floor holds for the next call as well: the limited one is not asked again."""
    limit = FaultRule("status", status=429, retry_after="60")
    async with scene(tmp_path, limit, others=1) as played:
        started = time.monotonic()
        first, second = await played.ask(), await played.ask()

    assert time.monotonic() - started < 30
    assert [first.model, second.model] == ["models/m1", "models/m1"]
    assert [first.usage.cost_usd_nanos, second.usage.cost_usd_nanos] == [COST, COST]
    assert played.calls == [1, 2]


async def test_a_rate_limit_beyond_patience_is_told_with_its_time(tmp_path: Path) -> None:
    """The caller can do better than guess."""
    limit = FaultRule("status", status=429, retry_after="60")
    async with scene(tmp_path, limit) as played:
        error = await played.refused()

    assert error.reason_name == "ERROR_REASON_PROVIDER_RATE_LIMITED"
    assert error.retry_after_s is not None
    assert 50 < error.retry_after_s <= 60
    assert "cost_usd_nanos" not in error.metadata
    assert played.calls == [1]


async def test_an_account_without_funds_is_left_at_once(tmp_path: Path) -> None:
    """`insufficient_quota` comes as a 429 and never passes by waiting."""
    broke = FaultRule("status", status=429, code="insufficient_quota", retry_after="60")
    async with scene(tmp_path, broke, others=1) as played:
        started = time.monotonic()
        answer = await played.ask()

    assert time.monotonic() - started < 30
    assert (answer.model, played.calls) == ("models/m1", [1, 1])
    assert answer.usage.cost_usd_nanos == COST


async def test_a_burst_of_server_errors_is_ridden_out(tmp_path: Path) -> None:
    """Errors of the provider's own are retried, and cost nothing."""
    async with scene(tmp_path, FaultRule("status", status=503, nth=(1, 2))) as played:
        answer = await played.ask()

    assert (answer.attempts, answer.usage.cost_usd_nanos) == (3, COST)


async def test_server_errors_without_end_are_given_up_after_a_few_attempts(
    tmp_path: Path,
) -> None:
    """A provider that is down gets no storm of retries."""
    async with scene(tmp_path, FaultRule("status", status=500)) as played:
        error = await played.refused()

    assert error.reason_name == "ERROR_REASON_PROVIDER_UNAVAILABLE"
    assert error.retry_after_s is not None
    assert "cost_usd_nanos" not in error.metadata
    assert played.calls == [3]


async def test_a_provider_that_never_answers_is_cut_off_by_the_callers_deadline(
    tmp_path: Path,
) -> None:
    """Nothing outlasts the deadline; what the provider may charge is counted as an estimate."""
    async with scene(tmp_path, FaultRule("hang"), drain_s=0.1) as played:
        error = await played.refused(timeout_s=1.0)
        while played.calls == [0]:  # on a busy machine the deadline is over before that
            error = await played.refused(timeout_s=1.0)

        async def is_estimated() -> bool:
            return await played.booked() == (ESTIMATED_INPUT * 1000 * played.calls[0], True)

        # Once the time is over that it has to tell what it took after all.
        await eventually(is_estimated, within_s=20)

    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("effect", ["hang", "stall"])
async def test_silence_is_left_for_another_provider_and_its_cost_estimated(
    effect: str, tmp_path: Path
) -> None:
    """Before the first byte and in the middle alike: it took the prompt, so it may charge."""
    async with scene(tmp_path, FaultRule(effect), others=1, timeout_s=1) as played:
        answer = await played.ask()

    assert answer.model == "models/m1"
    assert answer.usage.estimated
    # The prompt of each attempt, and what came of its answer.
    sent = (answer.attempts - 1) * ESTIMATED_INPUT * 1000
    assert COST + sent <= answer.usage.cost_usd_nanos <= COST + sent + 25 * 2000


@pytest.mark.parametrize("effect", ["cut", "garbage", "wrong_type"])
async def test_an_answer_that_cannot_be_read_is_asked_for_again(
    effect: str, tmp_path: Path
) -> None:
    """The provider worked for it: the prompt is counted a second time, as an estimate."""
    async with scene(tmp_path, once(effect)) as played:
        answer = await played.ask()

    assert (answer.text, answer.attempts) == (TEXT, 2)
    assert answer.usage.estimated
    assert answer.usage.cost_usd_nanos >= COST + ESTIMATED_INPUT * 1000


async def test_a_connection_reset_before_the_answer_is_retried(tmp_path: Path) -> None:
    """Nothing came back, so nothing is charged for it."""
    async with scene(tmp_path, once("reset")) as played:
        answer = await played.ask()

    assert (answer.text, answer.attempts) == (TEXT, 2)
    assert (answer.usage.cost_usd_nanos, answer.usage.estimated) == (COST, False)


async def test_a_body_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    """64 MiB of white space are legal JSON, and no reason to take them into memory."""
    async with scene(tmp_path, FaultRule("huge"), others=1) as played:
        answer = await played.ask()

    assert (answer.text, answer.model) == (TEXT, "models/m1")
    assert answer.usage.estimated
    assert answer.usage.cost_usd_nanos >= COST + ESTIMATED_INPUT * 1000


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_slow_trickle_is_an_answer_all_the_same(is_streamed: bool, tmp_path: Path) -> None:
    """Pieces that end within characters and events; slowness is no silence."""
    async with scene(tmp_path, FaultRule("trickle", pause_ms=1)) as played:
        if is_streamed:
            text, answer, _ = await played.stream()
            assert text == TEXT
        else:
            answer = await played.ask()

    assert answer is not None
    assert (answer.text, answer.usage.cost_usd_nanos) == (TEXT, COST)


async def test_a_cut_stream_does_not_end_as_a_good_answer(tmp_path: Path) -> None:
    """Portkey #1797: a stream that broke off ended as a clean 200 with half an answer."""
    async with scene(tmp_path, FaultRule("cut"), others=1) as played:
        text, answer, error = await played.stream()

    assert TEXT.startswith(text)
    assert text
    assert answer is None
    assert error is not None
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason_name == "ERROR_REASON_PROVIDER_BROKEN_REPLY"
    assert int(error.metadata["cost_usd_nanos"]) > 0
    assert error.metadata["usage_estimated"] == "true"
    assert played.calls == [1, 0]


async def test_a_stream_without_a_finish_reason_is_broken(tmp_path: Path) -> None:
    """Nobody can say whether it is whole. The usage that came along is charged as it is."""
    async with scene(tmp_path, FaultRule("finish_reason", finish_reason="none")) as played:
        text, answer, error = await played.stream()

    assert (text, answer) == (TEXT, None)
    assert error is not None
    assert error.reason_name == "ERROR_REASON_PROVIDER_BROKEN_REPLY"
    assert error.metadata["cost_usd_nanos"] == str(COST)


@pytest.mark.parametrize(
    ("effect", "estimated"), [("garbage", True), ("wrong_type", True), ("reset", False)]
)
async def test_a_stream_that_is_spoiled_from_its_start_goes_on_elsewhere(
    effect: str, estimated: bool, tmp_path: Path
) -> None:
    """As long as no piece has left, another deployment may answer. What took the prompt and gave
    no error may charge for it."""
    async with scene(tmp_path, FaultRule(effect), others=1) as played:
        text, answer, _ = await played.stream()

    assert text == TEXT
    assert answer is not None
    assert answer.model == "models/m1"
    extra = 3 * ESTIMATED_INPUT * 1000 if estimated else 0  # for each of its attempts
    assert answer.attempts == 4
    assert (answer.usage.cost_usd_nanos, answer.usage.estimated) == (COST + extra, estimated)


async def test_missing_usage_is_estimated_and_says_so(tmp_path: Path) -> None:
    """A provider that does not count is not free."""
    async with scene(tmp_path, FaultRule("no_usage")) as played:
        answer = await played.ask()

    assert answer.usage.estimated
    assert answer.usage.cost_usd_nanos == ESTIMATED_INPUT * 1000 + 25 * 2000


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_usage_of_zero_is_believed(is_streamed: bool, tmp_path: Path) -> None:
    """An explicit zero is a report, not a missing one."""
    async with scene(tmp_path, FaultRule("zero_usage")) as played:
        answer = (await played.stream())[1] if is_streamed else await played.ask()

    assert answer is not None
    assert (answer.usage.cost_usd_nanos, answer.usage.estimated) == (0, False)


async def test_duplicated_deltas_are_not_charged_twice(tmp_path: Path) -> None:
    """The text is what the provider sent; the charge is what it reported."""
    async with scene(tmp_path, FaultRule("duplicate")) as played:
        text, answer, _ = await played.stream()

    assert text == TEXT * 2
    assert answer is not None
    assert (answer.usage.cost_usd_nanos, answer.usage.estimated) == (COST, False)


def nowhere() -> str:
    """Return an address that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}/v1"


@pytest.mark.parametrize("kind", ["tls", "dns", "refused"])
async def test_a_provider_that_cannot_be_reached_costs_nothing_and_hands_over(
    kind: str, tmp_path: Path
) -> None:
    """A TLS handshake with a server that has none, a name that no resolver takes, a closed port."""
    # Longer than a name may be: refused by the resolver itself, without asking anybody.
    no_name = ".".join(["x" * 60] * 5)
    async with model(0) as plain, model(1) as good:
        base_url = {
            "tls": plain.base_url.replace("http://", "https://"),
            "dns": f"http://{no_name}/v1",
            "refused": nowhere(),
        }[kind]
        file = config_file(tmp_path / "c.toml", [base_url, good.base_url])
        async with gateway_channel(file) as channel:
            answer = await Scene(channel, [plain, good]).ask()

    assert (answer.model, answer.usage.cost_usd_nanos) == ("models/m1", COST)
    assert plain.counters["requests"] == 0


async def test_usage_is_not_lost_when_the_caller_goes_away(tmp_path: Path) -> None:
    """LiteLLM #14457: a stream whose caller had gone was charged to nobody."""
    limited = metadata(cost_usd_nanos_max=4 * COST)
    asked: dict[str, Any] = {"output_tokens_max": 25}
    async with scene(tmp_path, once("trickle", pause_ms=5)) as played:
        call = played.stub.StreamGenerate(stream_generate(**asked), metadata=limited, timeout=20)
        async for response in call:
            if response.text_delta:
                break
        call.cancel()
        # What the run has spent is told where it is refused; the stream is in it, as reported.
        answered = 0
        with pytest.raises(grpc.aio.AioRpcError) as error:
            while True:
                await played.stub.Generate(generate(**asked), metadata=limited, timeout=20)
                answered += 1

    refusal = received(error.value)
    assert refusal.reason_name == "ERROR_REASON_RUN_LIMIT_EXCEEDED"
    assert refusal.metadata["spent"] == str(COST * (answered + 1))
