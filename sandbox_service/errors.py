"""What the sandbox service tells its clients when it cannot do what they ask."""

from __future__ import annotations

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason

from common.errors import ServiceError

RETRY_AFTER_S = 1.0


class CapacityError(ServiceError):
    """No worker can take another session."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_SANDBOX_CAPACITY

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=RETRY_AFTER_S)


class StorageFullError(ServiceError):
    """The disk has no room for what was to be stored."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_STORAGE_FULL

    def __init__(self, store: str) -> None:
        super().__init__(f"the disk of {store} is full; its operator has to make room", store=store)


class ObjectStoreAwayError(ServiceError):
    """The object store cannot be reached, or does not do as it is asked."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_OBJECT_STORE_UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("the object store does not answer as it should", retry_after_s=2.0)


class SessionBusyError(ServiceError):
    """Another execution is running in the session."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_SESSION_BUSY

    def __init__(self, session: str) -> None:
        super().__init__(f"{session} is running another execution", session=session)


class SessionLostError(ServiceError):
    """The session is gone: its worker died, or its own code broke what runs cells."""

    code = grpc.StatusCode.NOT_FOUND
    reason = ErrorReason.ERROR_REASON_SESSION_LOST

    def __init__(self, session: str, cause: str, checkpoint: str) -> None:
        super().__init__(
            f"{session} is lost: {cause}", session=session, cause=cause, checkpoint=checkpoint
        )


class ContextTooLargeError(ServiceError):
    """A context does not fit the session's memory."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CONTEXT_TOO_LARGE

    def __init__(self, context: str, bytes_needed: int, memory_bytes_max: int) -> None:
        super().__init__(
            f"{context} needs {bytes_needed} bytes of memory; the session has {memory_bytes_max}",
            context=context,
            bytes_needed=bytes_needed,
            memory_bytes_max=memory_bytes_max,
        )


class ContextUnreadableError(ServiceError):
    """A context's blob is missing, or differs from its description."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CONTEXT_UNREADABLE

    def __init__(self, context: str, problem: str) -> None:
        super().__init__(f"{context} cannot be read: {problem}", context=context, problem=problem)


class ChildRunsUnavailableError(ServiceError):
    """No child run can be started from here."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CHILD_RUN_REFUSED

    def __init__(self, why: str) -> None:
        super().__init__(f"child runs are not available here: {why}; use llm_query")


class SubCallLimitError(ServiceError):
    """The session has made as many sub-calls as it may."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED

    def __init__(self, sub_calls_max: int) -> None:
        super().__init__(
            f"the limit of {sub_calls_max} sub-calls is used up",
            limit="sub_calls_max",
            value=sub_calls_max,
            spent=sub_calls_max,
        )


class CheckpointIncompatibleError(ServiceError):
    """A checkpoint belongs to another guest than this host has, or to limits it does not fit."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CHECKPOINT_INCOMPATIBLE

    def __init__(self, checkpoint: str, field: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{checkpoint} has another {field} than this host: {actual}, not {expected}",
            checkpoint=checkpoint,
            field=field,
            expected=expected,
            actual=actual,
        )


class CheckpointDamagedError(ServiceError):
    """A checkpoint's content is not what its key says, or a part of it is missing."""

    code = grpc.StatusCode.DATA_LOSS
    reason = ErrorReason.ERROR_REASON_CHECKPOINT_DAMAGED

    def __init__(self, checkpoint: str, problem: str) -> None:
        super().__init__(
            f"{checkpoint} is damaged: {problem}", checkpoint=checkpoint, problem=problem
        )


class HostToolsUnavailableError(ServiceError):
    """No host tool can be called from here."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_HOST_TOOL_REFUSED

    def __init__(self, why: str) -> None:
        super().__init__(f"host tools are not available here: {why}", tool="", why="not_offered")
