"""Each kind of failure has the exit status that scripts rely on, and something to try next."""

from __future__ import annotations

import pytest
from fathom.orchestrator.v1 import run_pb2
from fathom_client.command import exit_codes
from fathom_client.command.failures import NoServerError, explain
from fathom_client.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from fathom_client.home import HomeInUseError
from fathom_client.inputs import InputError
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
    (InvalidArgumentError("bad"), 1),
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

    assert cause == "spec.question: is empty\n  spec.context: is missing"


def test_a_run_that_was_lost_sight_of_can_be_watched_again() -> None:
    """The run goes on without its watcher; asking again would pay again."""
    assert explain(UnavailableError("cut"), run="runs/7").attempt == "fathom runs watch runs/7"


def test_a_gateway_that_does_not_start_names_the_variables_to_check() -> None:
    """Most often it is a model whose price is not known."""
    error = ServiceStartError("gateway", "the price table does not know 'm'")

    assert "FATHOM_ROOT_PRICE" in explain(error).attempt
