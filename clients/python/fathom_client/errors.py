"""Everything the client raises, and the total map from gRPC status codes to exceptions.

Branch on the class, `reason` and `metadata`; a message is for people and is never parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class FathomError(Exception):
    """Base of everything that this package raises on purpose."""


class CallError(FathomError):
    """A call that the service, or the way to it, answered with an error."""

    code: ClassVar[grpc.StatusCode]

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        field_violations: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what the status says.

        `reason` is a name of `fathom.errors.v1.ErrorReason`, empty where the error was not made
        by a fathom service; `field_violations` maps a request's field to what is wrong with it.
        """
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field_violations = dict(field_violations or {})


class CallCancelledError(CallError):
    """The call was given up by this side or the other."""

    code = grpc.StatusCode.CANCELLED


class UnknownServerError(CallError):
    """The server failed without saying how."""

    code = grpc.StatusCode.UNKNOWN


class InvalidArgumentError(CallError):
    """A field of the request is wrong whatever the server's state; see `field_violations`."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceededError(CallError):
    """No answer came in time; what was asked may have been done or not."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFoundError(CallError):
    """What the request names does not exist, or belongs to someone else."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(CallError):
    """What the request would create is there."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDeniedError(CallError):
    """The credential is known and does not allow this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class UnauthenticatedError(CallError):
    """No credential, or one that does not verify."""

    code = grpc.StatusCode.UNAUTHENTICATED


class ResourceExhaustedError(CallError):
    """A limit or quota is used up, or a message is too large."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPreconditionError(CallError):
    """The server's state does not allow this."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(CallError):
    """The call lost against something concurrent, or the run was stopped."""

    code = grpc.StatusCode.ABORTED


class OutOfRangeError(CallError):
    """The request reaches beyond the end of something."""

    code = grpc.StatusCode.OUT_OF_RANGE


class UnimplementedError(CallError):
    """The server does not offer this, or not yet."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(CallError):
    """A defect of the server, described in its log."""

    code = grpc.StatusCode.INTERNAL


class UnavailableError(CallError):
    """The service cannot be reached or does not take calls at present."""

    code = grpc.StatusCode.UNAVAILABLE


class DataLossError(CallError):
    """Bytes arrived other than they were announced."""

    code = grpc.StatusCode.DATA_LOSS


ERROR_CLASSES: Mapping[grpc.StatusCode, type[CallError]] = {
    error_class.code: error_class
    for error_class in (
        CallCancelledError,
        UnknownServerError,
        InvalidArgumentError,
        DeadlineExceededError,
        NotFoundError,
        AlreadyExistsError,
        PermissionDeniedError,
        UnauthenticatedError,
        ResourceExhaustedError,
        FailedPreconditionError,
        AbortedError,
        OutOfRangeError,
        UnimplementedError,
        InternalError,
        UnavailableError,
        DataLossError,
    )
}
"""One class for every status code but OK."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> CallError:
    """Return the exception for a `google.rpc.Status`, such as the one a failed run carries.

    A code that gRPC does not know, or OK, which is no failure, becomes UnknownServerError.
    """
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
        has_retry = detail.Unpack(retry) or has_retry
    return ERROR_CLASSES.get(code, UnknownServerError)(
        status.message,
        reason=info.reason,
        metadata=info.metadata,
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None,
        field_violations={v.field: v.description for v in bad_request.field_violations},
    )


def from_rpc_error(error: grpc.aio.AioRpcError | grpc.Call) -> CallError:
    """Return the exception for a failed call, with the details its trailers carry."""
    details = _details(error.trailing_metadata() or ())
    if details is not None and details.code == error.code().value[0]:
        return from_status(details)
    return ERROR_CLASSES[error.code()](error.details() or error.code().name)


def _details(trailers: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status | None:
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None
