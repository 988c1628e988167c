"""Each kind of failure has the exit status that scripts rely on, and something to try next."""

from __future__ import annotations

import pytest
from fathom.orchestrator.v1 import run_pb2
from fathom_client.command import exit_codes
from fathom_client.command.failures import NoLastingServerError, NoServerError, explain
from fathom_client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from fathom_client.home import HomeInUseError
from fathom_client.inputs import InputError
from fathom_client.local_stack import ListenAddressError
from fathom_client.model_settings import NoKeyError
from fathom_client.processes import ServiceStartError

STATUSES = [
    (run_pb2.Run.STATE_ANSWERED, 0),
    (run_pb2.Run.STATE_FAILED, 1),
    (run_pb2.Run.STATE_CANCELLED, 1),
    (run_pb2.Run.STATE_PARTIAL, 3),
]


@pytest.mark.parametrize(("state", "status"), STATUSES)
def test_the_end_of_a_run_is_told_by_the_exit_status(
    state: run_pb2.Run.State.ValueType, status: int
) -> None:
    assert exit_codes.of_run(state) == status


FAILURES = [
    (InputError("no question"), 2),
    (NotFoundError("no such run"), 1),
    (InvalidArgumentError("bad"), 2),
    (NoLastingServerError("none"), 2),
    (ListenAddressError("in use"), 2),
    (OSError("no space"), 1),
    (UnauthenticatedError("who?"), 4),
    (PermissionDeniedError("no"), 4),
    (NoKeyError("no key"), 4),
    (NoServerError("none"), 4),
    (UnavailableError("refused"), 5),
    (DeadlineExceededError("late"), 5),
    (ServiceStartError("sandbox", "ended"), 5),
    (HomeInUseError("in use"), 5),
]


@pytest.mark.parametrize(("error", "status"), FAILURES)
def test_a_failure_has_a_cause_a_remedy_and_a_status(error: Exception, status: int) -> None:
    failure = explain(error)

    assert failure.exit_code == status
    assert str(error) in failure.cause
    assert failure.attempt


def test_each_wrong_field_is_shown_once() -> None:
    error = InvalidArgumentError(
        "spec.question: is empty",
        field_violations={"spec.question": "is empty", "spec.context": "is missing"},
    )

    cause = explain(error).cause

    assert cause == "the question: is empty\n  --context: is missing"


CEILINGS = [
    ("spec.limits.turns_max", "900", "200", "--max-turns: 900", "--max-turns 200"),
    ("spec.limits.time_max", "90000", "86400", "--max-time: 25 h", "--max-time 86400"),
    ("spec.limits.cost_usd_nanos_max", "2e+12", "1e+12", "--max-usd: $2,000", "--max-usd 1000"),
    ("document", "20001", "20000", "document: 20001", "ask over fewer or smaller files"),
]


@pytest.mark.parametrize(("field", "value", "ceiling", "cause", "attempt"), CEILINGS)
def test_a_limit_above_the_ceiling_is_told_as_it_was_typed(
    field: str, value: str, ceiling: str, cause: str, attempt: str
) -> None:
    """Nobody typed a field of the contract, or billionths of a dollar."""
    error = InvalidArgumentError(
        f"{field}: {value} is above {ceiling}",
        reason="ERROR_REASON_LIMIT_ABOVE_CEILING",
        metadata={"field": field, "value": value, "ceiling": ceiling},
    )

    failure = explain(error)

    assert failure.cause.startswith(cause)
    assert failure.attempt.endswith(attempt)


def test_a_run_that_a_limit_left_without_an_answer_names_the_option_to_raise() -> None:
    error = FailedPreconditionError(
        "time_max was reached before the model gave a usable reply",
        reason="ERROR_REASON_RUN_NO_ANSWER",
        metadata={"limit": "time_max", "run": "runs/7"},
    )

    assert explain(error, run="runs/7").attempt == "ask again with a higher --max-time"


def test_a_failure_of_the_system_is_told_without_its_number() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/nope")

    assert explain(error).cause == "/nope: No such file or directory"


def test_what_to_try_names_the_same_server_again() -> None:
    """Without it, the command would ask another service about a run of this one."""
    attempt = explain(UnavailableError("cut"), run="runs/7", server=" --server h:1").attempt

    assert attempt == "fathom runs watch runs/7 --server h:1"


def test_a_run_that_was_lost_sight_of_can_be_watched_again() -> None:
    """The run goes on without its watcher; asking again would pay again."""
    assert explain(UnavailableError("cut"), run="runs/7").attempt == "fathom runs watch runs/7"


def test_a_gateway_that_does_not_start_names_the_variables_to_check() -> None:
    """Most often it is a model whose price is not known."""
    error = ServiceStartError("gateway", "the price table does not know 'm'", status=2)

    assert "FATHOM_ROOT_PRICE" in explain(error).attempt
