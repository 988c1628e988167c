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
    """As many runs wait as may wait, of the tenant or of all."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_QUEUE_FULL

    def __init__(self, limit: int, *, scope: str) -> None:
        whose = "of yours " if scope == "tenant" else ""
        message = f"{limit} runs {whose}are waiting, which is as many as may; try again later"
        super().__init__(message, retry_after_s=5.0, limit=limit, scope=scope)


class TenantBusyError(ServiceError):
    """A tenant has as many calls under way as it may have."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_TENANT_BUSY

    def __init__(self, limit: str, value: int) -> None:
        what = {
            "watchers_max": "runs are watched with keys of yours",
            "cell_calls_max": "calls of your runs' code wait",
        }.get(limit, "calls are under way with keys of yours")
        message = f"{value} {what}, which is as many as may; wait until some of them end"
        super().__init__(message, retry_after_s=1.0, limit=limit, value=value)


class RunCancelledError(ServiceError):
    """A caller asked for the run to stop."""

    code = grpc.StatusCode.ABORTED
    reason = ErrorReason.ERROR_REASON_RUN_CANCELLED

    def __init__(self, run: str) -> None:
        super().__init__("the run was cancelled", run=run)


class RunOverdueError(ServiceError):
    """The run outlived its limits by far, so the server ended it."""

    code = grpc.StatusCode.ABORTED
    reason = ErrorReason.ERROR_REASON_RUN_OVERDUE

    def __init__(self, run: str) -> None:
        super().__init__("the run outlived its limits and was ended by the server", run=run)


class ForkTurnUnknownError(ServiceError):
    """A run has no such turn after which it went on."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_FORK_TURN_UNKNOWN

    def __init__(self, run: str, turn: int, turns: int) -> None:
        message = f"{run} has not gone on after turn {turn}; it can be forked after 1 to {turns}"
        if not turns:
            message = f"{run} has not gone on after any turn, so it cannot be forked"
        super().__init__(message, run=run, turn=turn, turns=turns)


class NoAnswerError(ServiceError):
    """A limit was reached before the model gave anything that could be an answer."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_RUN_NO_ANSWER

    def __init__(self, run: str, turns: int, limit: str) -> None:
        message = f"{limit} was reached before the model gave a usable reply"
        super().__init__(message, run=run, turns=turns, limit=limit)


class KillSwitchError(ServiceError):
    """An operator has stopped what was to be used."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_KILL_SWITCH

    def __init__(self, target: str, why: str) -> None:
        super().__init__(f"{target} is stopped by an operator: {why}", target=target, why=why)


class ObjectStoreError(ServiceError):
    """The object store cannot be reached."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_OBJECT_STORE_UNAVAILABLE

    def __init__(self, problem: str) -> None:
        super().__init__("the object store does not answer as it should", retry_after_s=2.0)
        self.problem = problem
        """What is wrong with it, for the log; it may name places."""


class ObjectStoreFullError(ObjectStoreError):
    """The disk of the object store has no room for what is to be stored."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_STORAGE_FULL

    def __init__(self, *, bytes_needed: int | None = None, bytes_free: int | None = None) -> None:
        message = "the disk of the object store is full; its operator has to make room"
        numbers: dict[str, int] = {}
        if bytes_needed is not None and bytes_free is not None:
            numbers = {"bytes_needed": bytes_needed, "bytes_free": bytes_free}
            message = (
                f"the disk of the object store has room for {bytes_free:,} bytes more, and"
                f" {bytes_needed:,} are needed; its operator has to make room"
            )
        ServiceError.__init__(self, message, store="object store", **numbers)
        self.problem = message


class ChildRunRefusedError(ServiceError):
    """The run may have no child run, whatever it has left."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CHILD_RUN_REFUSED

    def __init__(self, run: str, why: str, *, limit: str = "") -> None:
        super().__init__(f"no child run: {why}", run=run, limit=limit)
        if limit == "children_per_tree_max":
            self.code = grpc.StatusCode.RESOURCE_EXHAUSTED


class NothingLeftError(ServiceError):
    """A limit of the run leaves nothing for what it asks."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED

    def __init__(self, limit: str, *, value: int, spent: int) -> None:
        message = f"{limit}: nothing is left of {value} for a child run"
        super().__init__(message, limit=limit, value=value, spent=spent)


class ConversationBusyError(ServiceError):
    """A conversation has one run at a time."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CONVERSATION_BUSY

    def __init__(self, conversation: str, run: str) -> None:
        message = f"{run} of {conversation} has not ended; wait for it or cancel it"
        super().__init__(message, conversation=conversation, run=run)


class ConversationLimitExceededError(ServiceError):
    """The runs of a conversation have used up a limit of it."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_CONVERSATION_LIMIT_EXCEEDED

    def __init__(self, conversation: str, limit: str, *, value: int, spent: int) -> None:
        super().__init__(
            f"{conversation} has used up its {limit} of {value}",
            conversation=conversation,
            limit=limit,
            value=value,
            spent=spent,
        )


class HelperFailedError(ServiceError):
    """A helper of the run's profile did not run to its end in the session."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_PROFILE_HELPER_FAILED

    def __init__(self, profile: str, helper: str, why: str) -> None:
        super().__init__(f"{profile}: {helper} failed: {why}", profile=profile, helper=helper)


class HostToolRefusedError(ServiceError):
    """The run may not call the host tool."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_HOST_TOOL_REFUSED

    def __init__(self, tool: str, why: str, message: str) -> None:
        super().__init__(f"{tool}: {message}", tool=tool, why=why)
        if why == "calls_max":
            self.code = grpc.StatusCode.RESOURCE_EXHAUSTED


class HostToolFailedError(ServiceError):
    """The host tool gave no result that is as its schema says."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_HOST_TOOL_FAILED

    def __init__(
        self,
        tool: str,
        why: str,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
    ) -> None:
        super().__init__(f"{tool}: {message}", tool=tool, why=why)
        self.code = code
