"""The orchestrator's own errors."""

from __future__ import annotations

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason

from common.errors import ServiceError


class ModelNotOfferedError(ServiceError):
    """The gateway offers no such tier or deployment."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = ErrorReason.ERROR_REASON_MODEL_NOT_OFFERED

    def __init__(self, field: str, tier: str, offered: list[str]) -> None:
        names = ", ".join(offered)
        super().__init__(f"{field}: {tier!r} is not offered", tier=tier, offered=names)


class QueueFullError(ServiceError):
    """As many runs wait as may wait."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_QUEUE_FULL

    def __init__(self, limit: int) -> None:
        message = f"{limit} runs are waiting, which is as many as may; try again later"
        super().__init__(message, retry_after_s=5.0, limit=limit)


class RunCancelledError(ServiceError):
    """A caller asked for the run to stop."""

    code = grpc.StatusCode.ABORTED
    reason = ErrorReason.ERROR_REASON_RUN_CANCELLED

    def __init__(self, run: str) -> None:
        super().__init__("the run was cancelled", run=run)


class RunInterruptedError(ServiceError):
    """The orchestrator stopped while the run was in progress."""

    code = grpc.StatusCode.ABORTED
    reason = ErrorReason.ERROR_REASON_RUN_INTERRUPTED

    def __init__(self, run: str) -> None:
        super().__init__("the orchestrator stopped while the run was in progress", run=run)


class NoAnswerError(ServiceError):
    """A limit was reached before the model gave anything that could be an answer."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_RUN_NO_ANSWER

    def __init__(self, run: str, turns: int, limit: str) -> None:
        message = f"{limit} was reached before the model gave a usable reply"
        super().__init__(message, run=run, turns=turns, limit=limit)
