"""Spans and metrics of calls: one `chat` span over all attempts, a child span for each, and what
they took. Prompts and answers appear only where a tenant's policy has content captured.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.parse
from collections.abc import Iterator

from opentelemetry import context as otel_context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.util.types import AttributeValue

from common import telemetry_names as names
from common.errors import ServiceError
from common.telemetry import meter, tracer
from llm_gateway.answers import Answer, Completion, Spend
from llm_gateway.calls import Call
from llm_gateway.catalog import Deployment
from llm_gateway.failures import ProviderError

_OPERATION = "chat"
_GOOD, _BAD = Status(StatusCode.OK), Status(StatusCode.ERROR)
_NANOS = 1_000_000_000
_CONTENT_CHARACTERS_MAX = 32_768


class CallTelemetry:
    """The gateway's instruments."""

    def __init__(self, *, newer_names: bool = False) -> None:
        """With `newer_names`, durations and tokens are told under the newer names of the
        conventions too, and so twice."""
        instruments = meter(__name__)
        self._tracer = tracer(__name__)
        self._duration = instruments.create_histogram(
            names.METRIC_CLIENT_OPERATION_DURATION, unit="s"
        )
        self._tokens = instruments.create_histogram(names.METRIC_CLIENT_TOKEN_USAGE, unit="{token}")
        self._newer = _NewerInstruments() if newer_names else None
        self._cost = instruments.create_counter(names.METRIC_COST_USD, unit="USD")
        self._upstream = instruments.create_counter(names.METRIC_GATEWAY_UPSTREAM)
        self._breakers = instruments.create_gauge(names.METRIC_GATEWAY_BREAKER_OPEN)

    @contextlib.contextmanager
    def call(
        self, call: Call, first: Deployment, *, captures_content: bool = False
    ) -> Iterator[SeenCall]:
        """Span a call; `first` is the deployment that is asked first.

        Prompt and answer are in the span only with `captures_content`.
        """
        labels: dict[str, AttributeValue] = {
            names.GEN_AI_OPERATION_NAME: _OPERATION,
            names.GEN_AI_PROVIDER_NAME: first.provider.name,
            names.GEN_AI_REQUEST_MODEL: first.model,
        }
        started = time.perf_counter()
        with self._span(f"{names.SPAN_CHAT} {first.model}", labels | _asked(call)) as span:
            try:
                yield SeenCall(span, captures_content=captures_content)
            except ServiceError as error:
                labels[names.ERROR_TYPE] = error.reason_name
                raise
            except asyncio.CancelledError:
                labels[names.ERROR_TYPE] = "cancelled"
                raise
            finally:
                if names.ERROR_TYPE in labels:
                    _fail(span, labels[names.ERROR_TYPE])
                took_s = time.perf_counter() - started
                self._duration.record(took_s, labels)
                if self._newer is not None:
                    self._newer.duration.record(took_s, labels)

    @contextlib.contextmanager
    def attempt(self, call: Call, deployment: Deployment, attempt: int) -> Iterator[SeenAttempt]:
        """Span one exchange and count how it ended."""
        url = urllib.parse.urlsplit(deployment.provider.base_url)
        attributes: dict[str, AttributeValue] = {
            names.GEN_AI_PROVIDER_NAME: deployment.provider.name,
            names.GEN_AI_REQUEST_MODEL: deployment.model,
            names.SERVER_ADDRESS: url.hostname or "",
            names.SERVER_PORT: url.port or (443 if url.scheme == "https" else 80),
            names.ATTEMPT: attempt,
            names.RUN_ID: call.token.run,
        }
        with self._span(names.SPAN_CHAT_ATTEMPT, attributes) as span:
            seen = SeenAttempt(span)
            try:
                yield seen
            finally:
                self._upstream.add(
                    1,
                    {
                        names.STATUS: seen.status,
                        names.GEN_AI_PROVIDER_NAME: deployment.provider.name,
                    },
                )

    def record_spend(self, tier: str, deployment: Deployment, spend: Spend) -> None:
        """Count what one exchange took."""
        labels = {
            names.GEN_AI_OPERATION_NAME: _OPERATION,
            names.GEN_AI_PROVIDER_NAME: deployment.provider.name,
            names.GEN_AI_REQUEST_MODEL: deployment.model,
        }
        if spend.tokens.total:
            self._tokens.record(spend.tokens.input, labels | {names.GEN_AI_TOKEN_TYPE: "input"})
            self._tokens.record(spend.tokens.output, labels | {names.GEN_AI_TOKEN_TYPE: "output"})
            if self._newer is not None:
                self._newer.input_tokens.add(spend.tokens.input, labels)
                self._newer.output_tokens.add(spend.tokens.output, labels)
        if spend.cost_usd_nanos:
            cost_labels = {names.MODEL: deployment.name, names.TIER: tier}
            self._cost.add(spend.cost_usd_nanos / _NANOS, cost_labels)

    def breaker_changed(self, deployment: Deployment, *, is_open: bool) -> None:
        """Tell whether a deployment is left alone."""
        self._breakers.set(int(is_open), {names.MODEL: deployment.name})

    @contextlib.contextmanager
    def _span(self, name: str, attributes: dict[str, AttributeValue]) -> Iterator[Span]:
        # Exceptions are not recorded: their text may hold what a provider said.
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        before = otel_context.attach(set_span_in_context(span))
        try:
            yield span
        finally:
            otel_context.detach(before)
            span.end()


class _NewerInstruments:
    """What the newer conventions have in place of two of the older instruments."""

    def __init__(self) -> None:
        instruments = meter(__name__)
        self.duration = instruments.create_histogram(names.METRIC_INFERENCE_DURATION, unit="s")
        self.input_tokens = instruments.create_counter(
            names.METRIC_INFERENCE_INPUT_TOKENS, unit="{token}"
        )
        self.output_tokens = instruments.create_counter(
            names.METRIC_INFERENCE_OUTPUT_TOKENS, unit="{token}"
        )


class SeenCall:
    """A call under way."""

    def __init__(self, span: Span, *, captures_content: bool) -> None:
        self._span = span
        self._captures_content = captures_content

    def asked(self, call: Call) -> None:
        """Note the prompt as it may leave, where content is captured."""
        if self._captures_content:
            text = "\n".join(f"{m.role.value}: {m.text}" for m in call.prompt.messages)
            self._span.set_attribute(names.INPUT_VALUE, text[:_CONTENT_CHARACTERS_MAX])

    def first_piece_after(self, seconds: float) -> None:
        """Note when a stream's first piece came."""
        self._span.set_attribute(names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, seconds)

    def answered(self, answer: Answer) -> None:
        """Note the answer."""
        tokens = answer.spend.tokens
        if self._captures_content:
            text = answer.completion.text
            self._span.set_attribute(names.OUTPUT_VALUE, text[:_CONTENT_CHARACTERS_MAX])
        self._span.set_attributes(
            {
                names.GEN_AI_RESPONSE_ID: answer.completion.response_id,
                names.GEN_AI_RESPONSE_MODEL: answer.completion.response_model,
                names.GEN_AI_RESPONSE_FINISH_REASONS: [answer.completion.finish_reason.value],
                names.GEN_AI_USAGE_INPUT_TOKENS: tokens.input,
                names.GEN_AI_USAGE_OUTPUT_TOKENS: tokens.output,
                names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: tokens.cached_input,
                names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: tokens.reasoning,
                names.COST_USD: answer.spend.cost_usd_nanos / _NANOS,
            }
        )
        self._span.set_status(_GOOD)


class SeenAttempt:
    """An exchange under way."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.status = "cancelled"
        """The label of its end."""

    def ended(self, result: Completion | ProviderError) -> None:
        """Note how it ended."""
        if isinstance(result, ProviderError):
            self.status = result.status_label
            if result.http_status:
                self._span.set_attribute(names.HTTP_STATUS_CODE, result.http_status)
            _fail(self._span, result.kind.value)
        else:
            self.status = "ok"
            self._span.set_status(_GOOD)


def _fail(span: Span, error_type: AttributeValue) -> None:
    span.set_attribute(names.ERROR_TYPE, error_type)
    span.set_status(_BAD)


def _asked(call: Call) -> dict[str, AttributeValue]:
    prompt = call.prompt
    attributes: dict[str, AttributeValue | None] = {
        names.GEN_AI_CONVERSATION_ID: call.token.asking_run,
        names.RUN_ID: call.token.run,
        names.DEPTH: call.token.depth,
        names.TIER: prompt.tier,
        names.TURN: call.turn or None,
        names.BATCH_INDEX: call.batch_index,
        names.GEN_AI_REQUEST_STREAM: call.is_streamed or None,
        names.GEN_AI_REQUEST_MAX_TOKENS: prompt.output_tokens_max,
        names.GEN_AI_REQUEST_TEMPERATURE: prompt.temperature,
        names.GEN_AI_REQUEST_SEED: prompt.seed,
    }
    return {name: value for name, value in attributes.items() if value is not None}
