"""The error model: domain errors that carry a status code and a reason, and the way back.

Domain code raises ServiceError's children and never sees gRPC; the server's interceptor turns
them into google.rpc.Status. A failed call to another service becomes a ReceivedError, so that
its code and reason survive the next hop.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "fathom"
_log = logging.getLogger(__name__)
_MESSAGE_BYTES_MAX = 800
_METADATA_BYTES_MAX = 1_500
_VIOLATIONS_BYTES_MAX = 1_000
"""gRPC replaces a status that takes more than 8 KiB of headers: the message goes twice, once
percent-encoded, and the details in base64."""


class ServiceError(Exception):
    """An error that a client may see: its message is written for the client."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: ErrorReason.ValueType = ErrorReason.ERROR_REASON_INTERNAL

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, **metadata: object
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @property
    def reason_name(self) -> str:
        """The reason as it stands in ErrorInfo."""
        return ErrorReason.Name(self.reason)

    def details(self) -> list[Message]:
        """Return the google.rpc messages that go along, ErrorInfo first."""
        room = _METADATA_BYTES_MAX // max(len(self.metadata), 1)
        metadata = {key: _cut(value, room) for key, value in self.metadata.items()}
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason_name, domain=DOMAIN, metadata=metadata)
        ]
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return details

    def to_status(self) -> status_pb2.Status:
        """Return the wire form."""
        packed = []
        for detail in self.details():
            packed.append(any_pb2.Any())
            packed[-1].Pack(detail)
        message = _cut(self.message, _MESSAGE_BYTES_MAX)
        return status_pb2.Status(code=status_number(self.code), message=message, details=packed)


class InvalidFieldError(ServiceError):
    """A field of the request is not acceptable; the description says what would be."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = ErrorReason.ERROR_REASON_INVALID_FIELD

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", field=field)
        self.violations = {field: description}

    @classmethod
    def many(cls, violations: Mapping[str, str]) -> InvalidFieldError:
        """Make one error for several fields, at least one."""
        field, description = next(iter(violations.items()))
        error = cls(field, description)
        error.violations = dict(violations)
        return error

    def details(self) -> list[Message]:
        """Add a BadRequest that names each field, or as many as a status holds."""
        bad_request = error_details_pb2.BadRequest()
        room = _VIOLATIONS_BYTES_MAX
        for field, description in self.violations.items():
            violation = bad_request.field_violations.add(
                field=_cut(field, room // 2), description=_cut(description, room // 2)
            )
            room -= violation.ByteSize()
            if room <= _VIOLATIONS_BYTES_MAX // 2:
                break
        return [*super().details(), bad_request]


class LimitAboveCeilingError(ServiceError):
    """A limit was asked for above what the server allows."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = ErrorReason.ERROR_REASON_LIMIT_ABOVE_CEILING

    def __init__(self, field: str, value: object, ceiling: object) -> None:
        message = f"{field}: {value} is above this server's ceiling of {ceiling}"
        super().__init__(message, field=field, value=value, ceiling=ceiling)


class NotFoundError(ServiceError):
    """There is no such resource, or it is another tenant's."""

    code = grpc.StatusCode.NOT_FOUND
    reason = ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND

    def __init__(self, resource: str) -> None:
        super().__init__(f"there is no {resource}", resource=resource)


class RequestIdReusedError(ServiceError):
    """The same request_id came with a different request."""

    code = grpc.StatusCode.ABORTED
    reason = ErrorReason.ERROR_REASON_REQUEST_ID_REUSED

    def __init__(self, request_id: str) -> None:
        message = "request_id: was used before with a different request; choose another"
        super().__init__(message, request_id=request_id)


class UnauthenticatedError(ServiceError):
    """No credential, or one that does not verify."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = ErrorReason.ERROR_REASON_UNAUTHENTICATED

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message, problem=problem)


class PermissionDeniedError(ServiceError):
    """The credential is good and does not allow this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = ErrorReason.ERROR_REASON_PERMISSION_DENIED

    def __init__(self, permission: str, message: str) -> None:
        super().__init__(message, permission=permission)


class DrainingError(ServiceError):
    """The server is shutting down; another one, or the same one later, will answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_DRAINING

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try again", retry_after_s=1.0)


class ServerBusyError(ServiceError):
    """The server is serving as many calls as it may."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_SERVER_BUSY

    def __init__(self, concurrent_rpcs_max: int) -> None:
        super().__init__(
            "the server is serving as many calls as it may; try again",
            retry_after_s=1.0,
            concurrent_rpcs_max=concurrent_rpcs_max,
        )


class RequestTooLargeError(ServiceError):
    """A request has more bytes than its method takes."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_REQUEST_TOO_LARGE

    def __init__(self, size_bytes: int, bytes_max: int) -> None:
        message = f"the request has {size_bytes:,} bytes; at most {bytes_max:,} are taken"
        super().__init__(message, bytes=size_bytes, bytes_max=bytes_max)


class ReceivedError(ServiceError):
    """What another service, or the way to it, answered instead of a result.

    `reason` is unspecified where the peer gave none, as when it could not be reached.
    """

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status
        self.code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        self.reason = ErrorReason.ERROR_REASON_UNSPECIFIED
        for detail in status.details:
            self._read(detail)

    def _read(self, detail: any_pb2.Any) -> None:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            self.metadata = dict(info.metadata)
            if info.domain == DOMAIN and info.reason in ErrorReason.keys():  # noqa: SIM118
                self.reason = ErrorReason.Value(info.reason)
        elif detail.Unpack(retry):
            self.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9

    def to_status(self) -> status_pb2.Status:
        """Return the peer's status as it came."""
        return self.status


def received(error: grpc.RpcError) -> ReceivedError:
    """Turn a failed call into a ReceivedError; details that do not parse are left out."""
    if not isinstance(error, grpc.aio.AioRpcError):
        raise TypeError(f"{type(error).__name__} is not an error of a grpc.aio call")
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:
        status = None
    if status is None:
        status = _transport_status(error)
    return ReceivedError(status)


def _transport_status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """Return a status in words of ours for a failure that no service of ours put into words: the
    library's name addresses and its own parts."""
    code = error.code()
    _log.warning("a call failed without a reason: %s %s", code.name, error.details())
    if code in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}:
        # What a call meets whose server is stopped or breaks. Ours give a reason with INTERNAL.
        code = grpc.StatusCode.UNAVAILABLE
    words = _TRANSPORT_WORDS.get(code)
    if words is not None:
        return _UnreachableError(code, words).to_status()
    words = f"a call between services failed ({code.name})"
    return status_pb2.Status(code=status_number(code), message=words)


class _UnreachableError(ServiceError):
    """Another service could not be reached, or did not answer in time."""

    reason = ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


_TRANSPORT_WORDS = {
    grpc.StatusCode.UNAVAILABLE: "another service could not be reached; try again",
    grpc.StatusCode.DEADLINE_EXCEEDED: "another service did not answer in time",
}


def status_number(code: grpc.StatusCode) -> int:
    """Return the number that google.rpc.Status has for a code."""
    number: int = code.value[0]
    return number


def _cut(text: str, bytes_max: int) -> str:
    return text.encode()[:bytes_max].decode(errors="ignore")


_CODES = {status_number(code): code for code in grpc.StatusCode}
