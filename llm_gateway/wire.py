"""Requests from the wire, checked field by field, and answers to the wire.

The only domain-side module that knows the protobuf messages; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from fathom.gateway.v1 import gateway_service_pb2 as service_pb2
from fathom.gateway.v1 import generation_pb2 as pb2

from common.errors import InvalidFieldError, LimitAboveCeilingError
from common.page_tokens import make_page_token, page_size, read_page_token
from llm_gateway.answers import Answer, FinishReason, Spend
from llm_gateway.catalog import MODEL_PREFIX, Catalog, Deployment
from llm_gateway.ledger.entries import CallSums
from llm_gateway.prompts import MESSAGES_MAX, CacheUse, Message, Prompt, Role
from llm_gateway.response_schema import BadSchemaError, compact_schema

_REQUEST_ID_CHARS_MAX = 256
_STOP_MAX = 4
_STOP_CHARS_MAX = 1_000
_TEMPERATURE_MAX = 2.0
_GRACE_S_MAX = 10.0
_MODELS = "models"
"""Scope of ListModels' page tokens."""
_ROLES = {
    pb2.Message.ROLE_SYSTEM: Role.SYSTEM,
    pb2.Message.ROLE_USER: Role.USER,
    pb2.Message.ROLE_ASSISTANT: Role.ASSISTANT,
}
_CACHE_USES = {
    pb2.Prompt.CACHE_USE_UNSPECIFIED: CacheUse.USUAL,
    pb2.Prompt.CACHE_USE_ALLOWED: CacheUse.ALLOWED,
    pb2.Prompt.CACHE_USE_NEVER: CacheUse.NEVER,
}
_FINISH_REASONS = {
    FinishReason.STOP: pb2.Generation.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb2.Generation.FINISH_REASON_LENGTH,
    FinishReason.FILTERED: pb2.Generation.FINISH_REASON_FILTERED,
}

Asking = service_pb2.GenerateRequest | service_pb2.StreamGenerateRequest | service_pb2.BatchItem
Counting = service_pb2.CountTokensRequest


def prompt_from(request: Asking | Counting) -> Prompt:
    """Return what a request asks; raises InvalidFieldError naming every bad field, and
    LimitAboveCeilingError for too many messages.

    The call's context, where the request has one, is checked along.
    """
    if not request.HasField("prompt"):
        raise InvalidFieldError("prompt", "is required")
    prompt = request.prompt
    if len(prompt.messages) > MESSAGES_MAX:
        raise LimitAboveCeilingError("prompt.messages", len(prompt.messages), MESSAGES_MAX)
    roles = [_ROLES.get(message.role) for message in prompt.messages]
    texts = [message.text for message in prompt.messages]
    violations = _message_violations(roles, texts) | _option_violations(prompt)
    schema = ""
    if prompt.response_schema_json:
        try:
            schema = compact_schema(prompt.response_schema_json)
        except BadSchemaError as error:
            violations["prompt.response_schema_json"] = str(error)
    if not isinstance(request, Counting):
        violations |= _context_violations(request.call)
    if violations:
        raise InvalidFieldError.many(violations)
    return Prompt(
        tier=prompt.tier,
        messages=tuple(map(Message, cast("list[Role]", roles), texts)),
        output_tokens_max=prompt.output_tokens_max
        if prompt.HasField("output_tokens_max")
        else None,
        temperature=prompt.temperature if prompt.HasField("temperature") else None,
        stop=tuple(prompt.stop),
        seed=prompt.seed if prompt.HasField("seed") else None,
        cache_use=_CACHE_USES[prompt.cache_use],
        response_schema=schema,
    )


def _message_violations(roles: Sequence[Role | None], texts: Sequence[str]) -> dict[str, str]:
    violations = {}
    if not texts:
        violations["prompt.messages"] = "needs at least one message"
    if None in roles or not all(texts):
        for index, (role, text) in enumerate(zip(roles, texts, strict=True)):
            if role is None:
                violations[f"prompt.messages[{index}].role"] = "must be SYSTEM, USER or ASSISTANT"
            if not text:
                violations[f"prompt.messages[{index}].text"] = "must not be empty"
    return violations


def _option_violations(prompt: pb2.Prompt) -> dict[str, str]:
    violations = {}
    if prompt.HasField("output_tokens_max") and prompt.output_tokens_max < 1:
        violations["prompt.output_tokens_max"] = "must be at least 1"
    if prompt.HasField("temperature") and not 0 <= prompt.temperature <= _TEMPERATURE_MAX:
        violations["prompt.temperature"] = "must be between 0 and 2"
    if prompt.cache_use not in _CACHE_USES:
        violations["prompt.cache_use"] = "must be UNSPECIFIED, ALLOWED or NEVER"
    if len(prompt.stop) > _STOP_MAX:
        violations["prompt.stop"] = f"may have at most {_STOP_MAX} texts"
    for index, text in enumerate(prompt.stop[:_STOP_MAX]):
        if not 0 < len(text) <= _STOP_CHARS_MAX:
            violations[f"prompt.stop[{index}]"] = f"must have 1 to {_STOP_CHARS_MAX} characters"
    return violations


def _context_violations(call: pb2.CallContext) -> dict[str, str]:
    violations = {}
    if len(call.request_id) > _REQUEST_ID_CHARS_MAX:
        violations["call.request_id"] = f"may have at most {_REQUEST_ID_CHARS_MAX} characters"
    elif not call.request_id.isprintable():
        violations["call.request_id"] = "may have printable characters only"
    if call.turn < 0:
        violations["call.turn"] = "must not be negative"
    if call.batch_index < 0:
        violations["call.batch_index"] = "must not be negative"
    return violations


def generation_to(answer: Answer, tier: str) -> pb2.Generation:
    """Return an answer's wire form; `tier` is what was asked for."""
    completion, booked = answer.completion, answer.booked
    generation = pb2.Generation(
        text=completion.text,
        reasoning=completion.reasoning,
        finish_reason=_FINISH_REASONS[completion.finish_reason],
        usage=_usage(answer.spend, calls=1 if answer.attempts else 0),
        recorded_usage=None if booked is None else _usage(booked.spend, calls=booked.answers),
        model=MODEL_PREFIX + answer.model,
        tier="" if tier.startswith(MODEL_PREFIX) else tier,
        attempts=answer.attempts,
        tier_served=answer.tier_served,
    )
    generation.elapsed.FromNanoseconds(round(answer.elapsed_s * 1e9))
    return generation


def _usage(spend: Spend, *, calls: int) -> pb2.Usage:
    return pb2.Usage(
        input_tokens=spend.tokens.input,
        output_tokens=spend.tokens.output,
        cached_input_tokens=spend.tokens.cached_input,
        reasoning_tokens=spend.tokens.reasoning,
        cost_usd_nanos=spend.cost_usd_nanos,
        calls=calls,
        estimated=spend.is_estimated,
    )


def settling_from(request: service_pb2.SettleCallsRequest) -> tuple[str, float]:
    """Return prefix and grace in seconds; raises InvalidFieldError naming every bad field."""
    violations: dict[str, str] = {}
    prefix, grace_s = request.request_id_prefix, request.grace.seconds + request.grace.nanos / 1e9
    if not 1 <= len(prefix) <= _REQUEST_ID_CHARS_MAX:
        violations["request_id_prefix"] = f"must have 1 to {_REQUEST_ID_CHARS_MAX} characters"
    if not 0 <= grace_s <= _GRACE_S_MAX:
        violations["grace"] = f"must be 0 to {_GRACE_S_MAX:g} seconds"
    if violations:
        raise InvalidFieldError.many(violations)
    return prefix, grace_s


def settled_to(sums: CallSums) -> service_pb2.SettleCallsResponse:
    """Return what calls took."""
    return service_pb2.SettleCallsResponse(
        calls=[
            pb2.CallUsage(
                request_id=each.request_id,
                tier=each.tier,
                model=MODEL_PREFIX + each.model,
                usage=_usage(each.spend, calls=each.answers),
            )
            for each in sums.calls
        ],
        calls_open=sums.open_calls,
    )


def models_page(
    models: list[Deployment], catalog: Catalog, request: service_pb2.ListModelsRequest
) -> service_pb2.ListModelsResponse:
    """Return the page that a request wants of `models`, which are sorted by name."""
    size = page_size(request.page_size)
    after = read_page_token(_MODELS, request.page_token)
    left = [model for model in models if model.name > after]
    page = left[:size]
    return service_pb2.ListModelsResponse(
        models=[_model_to(model, catalog) for model in page],
        next_page_token=make_page_token(_MODELS, page[-1].name) if len(left) > size else "",
    )


def _model_to(deployment: Deployment, catalog: Catalog) -> service_pb2.Model:
    rates = deployment.price.bands[0]
    return service_pb2.Model(
        name=MODEL_PREFIX + deployment.name,
        tiers=catalog.tiers_of(deployment.name),
        context_tokens_max=deployment.context_tokens_max,
        output_tokens_max=deployment.output_tokens_max,
        input_usd_nanos_per_million_tokens=rates.input,
        output_usd_nanos_per_million_tokens=rates.output,
        structured_output=deployment.structured_output,
    )
