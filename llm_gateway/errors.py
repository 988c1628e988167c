"""The gateway's errors, each with the code and reason that clients branch on.

Their messages are ours alone: what a provider or a library says goes to the log at most.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from common.errors import ServiceError


class ModelNotOfferedError(ServiceError):
    """The tier or model is not in the configuration."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = ErrorReason.ERROR_REASON_MODEL_NOT_OFFERED

    def __init__(self, wanted: str, offered: Iterable[str]) -> None:
        names = ", ".join(offered)
        kind = "model" if wanted.startswith("models/") else "tier"
        message = f"prompt.tier: {wanted[:100]!r} is not offered; offered are {names}"
        super().__init__(message, offered=names)
        self.metadata[kind] = wanted


class EgressRefusedError(ServiceError):
    """A prompt holds what must not leave."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_EGRESS_REFUSED

    def __init__(self, kind: str, field: str) -> None:
        super().__init__(
            f"{field}: holds what looks like a secret ({kind}) and must not leave; take it out, or "
            "have the gateway's [egress] table redact it",
            kind=kind,
            field=field,
        )


class RunLimitExceededError(ServiceError):
    """The call could cross a limit of its run, so it was not made."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED

    def __init__(self, limit: str, value: int, spent: int, needed: int) -> None:
        message = f"{limit}: {spent} of {value} are spent and this call may take {needed}"
        super().__init__(message, limit=limit, value=value, spent=spent)


class QuotaExceededError(ServiceError):
    """The call could cross a quota of its tenant, so it was not made."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_QUOTA_EXCEEDED

    def __init__(
        self,
        quota: str,
        limit: str,
        value: int,
        spent: int,
        needed: int,
        *,
        retry_after_s: float | None,
    ) -> None:
        """`retry_after_s` is None where waiting does not help."""
        self.description = f"{limit}: {spent} of {value} are taken and this call may take {needed}"
        super().__init__(
            f"{quota}: {self.description}",
            retry_after_s=retry_after_s,
            quota=quota,
            limit=limit,
            value=value,
            spent=spent,
        )

    def details(self) -> list[Message]:
        """Add a QuotaFailure that names the quota."""
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=self.metadata["quota"], description=self.description)
        return [*super().details(), failure]


class ProviderUnavailableError(ServiceError):
    """No provider answered, or all with an error of their own."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE

    def __init__(self, provider: str, model: str, attempts: int, retry_after_s: float) -> None:
        super().__init__(
            f"provider {provider} did not answer for model {model} in {attempts} attempts",
            retry_after_s=retry_after_s,
            provider=provider,
            model=model,
            attempts=attempts,
        )


class ProviderCredentialError(ServiceError):
    """A provider refused our credential, or its account has no funds."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_PROVIDER_CREDENTIAL

    def __init__(self, provider: str, model: str) -> None:
        message = (
            f"provider {provider} refused the gateway's credential, or its account has no funds"
        )
        super().__init__(message, provider=provider, model=model)


class ProviderRejectedError(ServiceError):
    """A provider refused the request as such."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_PROVIDER_REJECTED

    def __init__(self, provider: str, model: str, http_status: int) -> None:
        super().__init__(
            f"provider {provider} rejected the request for model {model} (HTTP {http_status})",
            provider=provider,
            model=model,
            http_status=http_status,
        )


class ContextWindowExceededError(ServiceError):
    """The messages do not fit the window of any model that may answer."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED

    def __init__(self, model: str, context_tokens_max: int) -> None:
        super().__init__(f"the messages do not fit the window of {model}", model=model)
        if context_tokens_max:
            self.metadata["context_tokens_max"] = str(context_tokens_max)


class ProviderBrokenReplyError(ServiceError):
    """A provider's answer broke off, or was not one that the protocol allows."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_PROVIDER_BROKEN_REPLY

    def __init__(self, provider: str, model: str, problem: str) -> None:
        message = f"the reply of provider {provider} for model {model} is broken: {problem}"
        super().__init__(message, provider=provider, model=model, problem=problem)


class ProviderRateLimitedError(ServiceError):
    """A provider's rate limit holds for longer than the call may wait."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_PROVIDER_RATE_LIMITED

    def __init__(self, provider: str, model: str, retry_after_s: float) -> None:
        super().__init__(
            f"provider {provider} limits the rate for model {model}",
            retry_after_s=retry_after_s,
            provider=provider,
            model=model,
        )


class StreamReaderSlowError(ServiceError):
    """A stream was read so slowly that what waited for its reader was let go of."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_STREAM_READER_SLOW

    def __init__(self) -> None:
        super().__init__(
            "the stream was read too slowly, and too much waits for readers; ask again with the "
            "same call.request_id for the recorded answer, or use Generate",
            retry_after_s=1.0,
        )


class ProviderTimeoutError(ServiceError):
    """The call's deadline passed while a provider worked."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = ErrorReason.ERROR_REASON_PROVIDER_TIMEOUT

    def __init__(self, provider: str, model: str) -> None:
        message = f"the deadline passed before provider {provider} answered for model {model}"
        super().__init__(message, provider=provider, model=model)


class LedgerUnavailableError(ServiceError):
    """The ledger, or where spend is counted, cannot be reached: without them no call is made."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_LEDGER_UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(
            "the ledger of calls, or where spend is counted, cannot be reached; try again",
            retry_after_s=1.0,
        )


class AnswerUnreadableError(ServiceError):
    """The recorded answer is damaged or gone; asking again would be paid again."""

    code = grpc.StatusCode.DATA_LOSS
    reason = ErrorReason.ERROR_REASON_ANSWER_UNREADABLE

    def __init__(self, request_id: str) -> None:
        super().__init__("the recorded answer cannot be read back", request_id=request_id)
