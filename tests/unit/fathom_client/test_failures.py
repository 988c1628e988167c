"""What is said of a failure: its cause, and a next step that is of use."""

from __future__ import annotations

import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom_client.access import ApiKeyError
from fathom_client.command import exit_codes
from fathom_client.command.failures import explain
from fathom_client.errors import (
    CallError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from fathom_client.inputs import InputError

_SEEN_BY_SERVICES_ALONE = frozenset(
    {
        "ERROR_REASON_UNSPECIFIED",
        "ERROR_REASON_SESSION_BUSY",
        "ERROR_REASON_SESSION_LOST",
        "ERROR_REASON_CONTEXT_UNREADABLE",
        "ERROR_REASON_CHECKPOINT_INCOMPATIBLE",
        "ERROR_REASON_CHECKPOINT_DAMAGED",
        "ERROR_REASON_ANSWER_UNREADABLE",
        "ERROR_REASON_CHILD_RUN_FAILED",
        "ERROR_REASON_HOST_TOOL_REFUSED",
        "ERROR_REASON_HOST_TOOL_FAILED",
        "ERROR_REASON_STREAM_READER_SLOW",
    }
)
_SAID_BY_THE_STATUS = frozenset(
    {
        "ERROR_REASON_RESOURCE_NOT_FOUND",
        "ERROR_REASON_INVALID_FIELD",
        "ERROR_REASON_LIMIT_ABOVE_CEILING",
        "ERROR_REASON_UNAUTHENTICATED",
        "ERROR_REASON_PERMISSION_DENIED",
        "ERROR_REASON_SERVICE_UNREACHABLE",
        "ERROR_REASON_DRAINING",
        "ERROR_REASON_NOT_IMPLEMENTED",
        "ERROR_REASON_DIGEST_MISMATCH",
        "ERROR_REASON_RUN_CANCELLED",
        "ERROR_REASON_RUN_NO_ANSWER",
    }
)


@pytest.mark.parametrize(
    "reason", sorted(set(ErrorReason.keys()) - _SEEN_BY_SERVICES_ALONE - _SAID_BY_THE_STATUS)
)
def test_each_reason_that_a_user_meets_has_a_next_step_of_its_own(reason: str) -> None:
    """`look at your runs` is what is left to say where nothing is known."""
    error = FailedPreconditionError("it failed", reason=reason)

    unknown = explain(FailedPreconditionError("it failed", reason="ERROR_REASON_OF_TOMORROW"))
    assert explain(error).attempt != unknown.attempt


@pytest.mark.parametrize(
    ("resource", "verb"),
    [
        ("contexts/a", "fathom contexts list --server h:1"),
        ("conversations/a", "fathom conversations list --server h:1"),
        ("runs/a", "fathom runs list --server h:1"),
        ("profiles/a", "fathom profiles list --server h:1"),
    ],
)
def test_what_is_not_found_is_looked_up_among_its_own_kind(resource: str, verb: str) -> None:
    error = NotFoundError(f"there is no {resource}", metadata={"resource": resource})

    assert explain(error, server=" --server h:1").attempt == verb


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (UnauthenticatedError("no key", metadata={"problem": "missing"}), "set FATHOM_API_KEY"),
        (UnauthenticatedError("old", metadata={"problem": "expired"}), "new key"),
        (UnauthenticatedError("who?", metadata={"problem": "foreign"}), "does not know this key"),
        (PermissionDeniedError("no", metadata={"permission": "operator"}), "operator's key"),
        (ApiKeyError("the API key has spaces"), "FATHOM_API_KEY"),
    ],
)
def test_who_is_not_authorised_is_told_what_about_the_key(error: Exception, part: str) -> None:
    failure = explain(error)

    assert part in failure.attempt
    assert failure.exit_code == exit_codes.NOT_AUTHORISED


@pytest.mark.parametrize(
    ("reason", "attempt"),
    [
        ("ERROR_REASON_RUN_LIMIT_EXCEEDED", "ask again with a higher --max-usd"),
        ("ERROR_REASON_CONVERSATION_LIMIT_EXCEEDED", "fathom conversations start PATH..."),
    ],
)
def test_an_option_is_named_only_where_it_would_raise_the_limit(reason: str, attempt: str) -> None:
    """A conversation's money is its own: no option of its next question adds to it."""
    error: CallError = ResourceExhaustedError(
        "used up", reason=reason, metadata={"limit": "cost_usd_nanos_max"}
    )

    assert explain(error).attempt == attempt


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("spec.answer_schema_json", "--schema"),
        ("spec.root_tier", "--root-model"),
        ("spec.limits.sub_calls_max", "--max-calls"),
        ("changes.sub_tier", "--sub-model"),
        ("page_size", "page_size"),
    ],
)
def test_a_wrong_field_is_named_by_the_option_that_sets_it(field: str, words: str) -> None:
    """Nobody who types a command knows the contract; what no option sets keeps its name."""
    error = InvalidArgumentError(f"{field}: 'x: y' is wrong", metadata={"field": field})

    assert explain(error).cause == f"{words}: 'x: y' is wrong"


def test_wrong_arguments_lead_to_the_help_of_their_own_verb() -> None:
    failure = explain(InputError("no such file"), verb="contexts put")

    assert failure.attempt == "fathom contexts put --help"
