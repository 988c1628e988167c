"""What can be wrong with a context or an upload, beyond a field of the request."""

from __future__ import annotations

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason

from common.errors import ServiceError


class DigestMismatchError(ServiceError):
    """The bytes are not those that the client announced."""

    code = grpc.StatusCode.DATA_LOSS
    reason = ErrorReason.ERROR_REASON_DIGEST_MISMATCH

    def __init__(self, what: str, *, expected: object, actual: object) -> None:
        message = f"the uploaded bytes have a {what} of {actual}, not the {expected} announced"
        super().__init__(message, expected=expected, actual=actual)


class ContextInUseError(ServiceError):
    """A run that has not ended, or a conversation, uses the context."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CONTEXT_IN_USE

    def __init__(self, context: str, *, run: str = "", conversation: str = "") -> None:
        if run:
            super().__init__(f"{context} is used by {run}", context=context, run=run)
        else:
            message = f"{context} is used by {conversation}; delete that first"
            super().__init__(message, context=context, conversation=conversation)


class StorageQuotaError(ServiceError):
    """The tenant stores as much as it may."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_STORAGE_QUOTA_EXCEEDED

    def __init__(self, bytes_max: int, spent: int) -> None:
        message = f"{spent:,} of {bytes_max:,} bytes are stored, and this is more than the rest"
        super().__init__(f"{message}; delete contexts", value=bytes_max, spent=spent)


class UploadSupersededError(ServiceError):
    """Another stream has gone on with the upload."""

    code = grpc.StatusCode.ABORTED
    reason = ErrorReason.ERROR_REASON_UPLOAD_SUPERSEDED

    def __init__(self, upload_id: str) -> None:
        super().__init__("another stream goes on with this upload", upload_id=upload_id)


class UploadsTooManyError(ServiceError):
    """The tenant has as many unfinished uploads as it may have."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_UPLOADS_TOO_MANY

    def __init__(self, limit: int) -> None:
        message = f"{limit} uploads are unfinished, which is as many as may be; end some of them"
        super().__init__(message, retry_after_s=60.0, limit=limit)
