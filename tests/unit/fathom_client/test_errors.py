"""Errors of calls: the map from status codes is total, and the details reach the caller."""

from __future__ import annotations

import grpc
import pytest
from fathom_client.errors import (
    ERROR_CLASSES,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    UnknownServerError,
    from_rpc_error,
    from_status,
)
from google.rpc import status_pb2

from common.errors import DrainingError, InvalidFieldError, NotFoundError


def rpc_error(code: grpc.StatusCode, *trailers: tuple[str, str | bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details="told by gRPC"
    )


def test_every_status_code_but_ok_has_an_exception() -> None:
    """A code that gRPC adds one day must not surface as something unforeseen."""
    assert set(ERROR_CLASSES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize("code", list(ERROR_CLASSES))
def test_an_exception_carries_the_code_it_stands_for(code: grpc.StatusCode) -> None:
    error = from_rpc_error(rpc_error(code))

    assert error.code is code
    assert type(error) is ERROR_CLASSES[code]
    assert str(error) == "told by gRPC"


def test_reason_and_metadata_come_from_the_details() -> None:
    status = NotFoundError("runs/7").to_status()
    trailer = ("grpc-status-details-bin", status.SerializeToString())

    error = from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, trailer))

    assert error.reason == "ERROR_REASON_RESOURCE_NOT_FOUND"
    assert error.metadata == {"resource": "runs/7"}
    assert error.retry_after_s is None


def test_each_wrong_field_is_named() -> None:
    status = InvalidFieldError.many({"spec.question": "is empty", "spec.context": "is empty"})

    error = from_status(status.to_status())

    assert isinstance(error, InvalidArgumentError)
    assert error.field_violations == {"spec.question": "is empty", "spec.context": "is empty"}


def test_the_time_to_wait_is_kept() -> None:
    error = from_status(DrainingError().to_status())

    assert isinstance(error, UnavailableError)
    assert error.retry_after_s is not None
    assert error.retry_after_s > 0


def test_a_code_that_grpc_does_not_know_is_an_unknown_error() -> None:
    """A newer server's status must still become an exception."""
    assert isinstance(from_status(status_pb2.Status(code=99, message="?")), UnknownServerError)


def test_an_error_that_fathom_did_not_make_has_no_reason() -> None:
    """Such as a message that gRPC itself finds too large."""
    error = from_rpc_error(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED))

    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == ""
