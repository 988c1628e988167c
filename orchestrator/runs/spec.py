"""A run's spec: checked field by field, and completed with the server's defaults."""

from __future__ import annotations

from fathom.orchestrator.v1.run_pb2 import Limits, RunSpec

from common.errors import InvalidFieldError, NotBuiltYetError
from orchestrator.contexts.upload import check_entries
from orchestrator.resource_names import read_name
from orchestrator.runs.limits import RunLimits, check_limits

QUESTION_BYTES_MAX = 64 << 10
TIER_CHARACTERS_MAX = 128
ROOT_TIER = "root"
SUB_TIER = "sub"
_NOT_BUILT = {
    "profile": "every run uses the built-in prompts",
    "answer_schema_json": "answers are text",
    "conversation": "every run has a session of its own",
}


def complete_spec(spec: RunSpec, *, defaults: RunLimits, ceilings: RunLimits) -> RunSpec:
    """Return the spec with every default filled in.

    Raises InvalidFieldError, LimitAboveCeilingError or NotBuiltYetError, naming the field. That
    the context exists and the tiers are offered is not checked here.
    """
    for field, why in _NOT_BUILT.items():
        if getattr(spec, field):
            raise NotBuiltYetError(f"spec.{field}", why)
    size = len(spec.question.encode())
    if not spec.question.strip():
        raise InvalidFieldError("spec.question", "must not be empty")
    if size > QUESTION_BYTES_MAX:
        raise InvalidFieldError(
            "spec.question", f"has {size} bytes; at most {QUESTION_BYTES_MAX} are allowed"
        )
    read_name("spec.context", spec.context, collection="contexts")
    for field in ("root_tier", "sub_tier"):
        if len(getattr(spec, field)) > TIER_CHARACTERS_MAX:
            raise InvalidFieldError(
                f"spec.{field}", f"must have at most {TIER_CHARACTERS_MAX} characters"
            )
    check_entries("spec.labels", spec.labels)
    limits = check_limits(_asked(spec.limits), defaults=defaults, ceilings=ceilings)
    complete = RunSpec()
    complete.CopyFrom(spec)
    complete.root_tier = spec.root_tier or ROOT_TIER
    complete.sub_tier = spec.sub_tier or SUB_TIER
    complete.limits.CopyFrom(_message(limits))
    return complete


def limits_of(spec: RunSpec) -> RunLimits:
    """Return the limits of a completed spec."""
    limits = spec.limits
    return RunLimits(
        turns_max=limits.turns_max,
        time_max_s=limits.time_max.ToNanoseconds() / 1e9,
        sub_calls_max=limits.sub_calls_max,
        tokens_max=limits.tokens_max,
        cost_usd_nanos_max=limits.cost_usd_nanos_max,
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
        depth_max=0,
    )
    message.time_max.FromNanoseconds(round(limits.time_max_s * 1e9))
    return message
