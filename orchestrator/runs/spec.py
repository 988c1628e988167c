"""A run's spec: checked field by field, and completed with the server's defaults."""

from __future__ import annotations

from fathom.orchestrator.v1.run_pb2 import Limits, RunSpec

from common.errors import InvalidFieldError
from orchestrator.contexts.upload_plan import check_entries
from orchestrator.resource_names import read_name
from orchestrator.runs.limits import RunLimits, check_limits

QUESTION_BYTES_MAX = 64 << 10
TIER_CHARACTERS_MAX = 128
PRIORITY_MAX = 9
DIRECT_TOKENS_MAX = 1_000_000
ROOT_TIER = "root"
SUB_TIER = "sub"


def complete_spec(
    spec: RunSpec, *, defaults: RunLimits, ceilings: RunLimits, direct_tokens_max: int = 0
) -> RunSpec:
    """Return the spec with every default filled in; `direct_tokens_max` is one of them.

    Raises InvalidFieldError or LimitAboveCeilingError, naming the field. That
    the context exists and the tiers are offered is not checked here.
    """
    size = len(spec.question.encode())
    if not spec.question.strip():
        raise InvalidFieldError("spec.question", "must not be empty")
    if size > QUESTION_BYTES_MAX:
        raise InvalidFieldError(
            "spec.question", f"has {size} bytes; at most {QUESTION_BYTES_MAX} are allowed"
        )
    _check_names(spec)
    for field in ("root_tier", "sub_tier"):
        if len(getattr(spec, field)) > TIER_CHARACTERS_MAX:
            raise InvalidFieldError(
                f"spec.{field}", f"must have at most {TIER_CHARACTERS_MAX} characters"
            )
    check_entries("spec.labels", spec.labels)
    if not 0 <= spec.priority <= PRIORITY_MAX:
        raise InvalidFieldError("spec.priority", f"must be 0 to {PRIORITY_MAX}")
    _check_shortcuts(spec)
    limits = check_limits(_asked(spec.limits), defaults=defaults, ceilings=ceilings)
    complete = RunSpec()
    complete.CopyFrom(spec)
    complete.root_tier = spec.root_tier or ROOT_TIER
    complete.sub_tier = spec.sub_tier or SUB_TIER
    if not spec.HasField("direct_tokens_max"):
        complete.direct_tokens_max = direct_tokens_max
    complete.limits.CopyFrom(_message(limits))
    return complete


def _check_names(spec: RunSpec) -> None:
    """A conversation has a context, so that a run of it need not name one."""
    if spec.conversation:
        read_name("spec.conversation", spec.conversation, collection="conversations")
    if spec.context or not spec.conversation:
        read_name("spec.context", spec.context, collection="contexts")


def _check_shortcuts(spec: RunSpec) -> None:
    """What may end a run early."""
    if not 0 <= spec.confidence_min <= 1:
        raise InvalidFieldError("spec.confidence_min", "must be 0 to 1")
    if not 0 <= spec.direct_tokens_max <= DIRECT_TOKENS_MAX:
        raise InvalidFieldError("spec.direct_tokens_max", f"must be 0 to {DIRECT_TOKENS_MAX}")


def limits_of(spec: RunSpec) -> RunLimits:
    """Return the limits of a completed spec."""
    limits = spec.limits
    return RunLimits(
        turns_max=limits.turns_max,
        time_max_s=limits.time_max.ToNanoseconds() / 1e9,
        sub_calls_max=limits.sub_calls_max,
        tokens_max=limits.tokens_max,
        cost_usd_nanos_max=limits.cost_usd_nanos_max,
        depth_max=limits.depth_max,
        children_live_max=limits.children_live_max,
    )


def _asked(limits: Limits) -> dict[str, float | None]:
    """Return the limits that are set, also to 0, by their names; `time_max` in seconds."""
    asked: dict[str, float | None] = {
        field.name: value for field, value in limits.ListFields() if field.name != "time_max"
    }
    if limits.HasField("time_max"):
        asked["time_max"] = limits.time_max.ToNanoseconds() / 1e9
    return asked


def _message(limits: RunLimits) -> Limits:
    message = Limits(
        turns_max=limits.turns_max,
        sub_calls_max=limits.sub_calls_max,
        tokens_max=limits.tokens_max,
        cost_usd_nanos_max=limits.cost_usd_nanos_max,
        depth_max=limits.depth_max,
        children_live_max=limits.children_live_max,
    )
    message.time_max.FromNanoseconds(round(limits.time_max_s * 1e9))
    return message
