"""What became of the calls that a cell asked for, as its guest is told: answers and refusals."""

from __future__ import annotations

from collections.abc import Iterable

from fathom.errors.v1.error_reason_pb2 import ErrorReason

from common.errors import ServiceError
from sandbox_service import frames

_MESSAGE_CHARACTERS = 2_000
_CHARACTERS_MAX = frames.FRAME_BYTES_MAX // 5
"""A character takes up to four bytes, and there is more in a frame than the answers."""
_TOO_LARGE = frames.Refusal(
    reason="ANSWERS_TOO_LARGE", message="the answers of one batch are too large; ask for less"
)


def refusal(error: ServiceError) -> frames.Refusal:
    """Return an error as the guest gets it."""
    reason = error.reason_name.removeprefix("ERROR_REASON_")
    message = error.message[:_MESSAGE_CHARACTERS]
    return frames.Refusal(reason=reason, message=message, is_limit=_is_limit(error))


def fitted(outcomes: Iterable[frames.Outcome]) -> list[frames.Outcome]:
    """Return the outcomes with refusals for those answers that one frame has no room for."""
    answers: list[frames.Outcome] = []
    room = _CHARACTERS_MAX
    for outcome in outcomes:
        if isinstance(outcome, frames.Refusal):
            answers.append(outcome)
            continue
        room -= len(outcome.text)
        answers.append(outcome if room >= 0 else _TOO_LARGE)
    return answers


def limit_among(outcomes: Iterable[object]) -> ServiceError | None:
    """Return the first error that says that a limit of the run is used up."""
    for outcome in outcomes:
        if isinstance(outcome, ServiceError) and _is_limit(outcome):
            return outcome
    return None


def _is_limit(error: ServiceError) -> bool:
    return error.reason == ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED
