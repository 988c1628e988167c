"""The error model, from a domain error to the wire and back."""

from __future__ import annotations

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from google.rpc import error_details_pb2

from common.errors import (
    InvalidFieldError,
    LimitAboveCeilingError,
    NotFoundError,
    ReceivedError,
    ServiceError,
    received,
)


def test_a_bad_field_is_named_in_a_bad_request() -> None:
    status = InvalidFieldError.many({"a": "is empty", "b": "is negative"}).to_status()

    bad_request = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad_request)
    assert [v.field for v in bad_request.field_violations] == ["a", "b"]


def test_an_error_survives_the_way_through_two_services() -> None:
    """A client branches on the reason that the innermost service gave."""
    first = ServiceError("slow down", retry_after_s=1.5, provider="p")

    second = ReceivedError(first.to_status())

    assert second.code is grpc.StatusCode.INTERNAL
    assert second.reason_name == "ERROR_REASON_INTERNAL"
    assert second.metadata == {"provider": "p"}
    assert second.retry_after_s == 1.5
    assert second.to_status() == first.to_status()


def test_a_reason_of_another_domain_is_not_taken_for_ours() -> None:
    status = NotFoundError("runs/1").to_status()
    info = error_details_pb2.ErrorInfo(reason="ERROR_REASON_INTERNAL", domain="elsewhere")
    status.details[0].Pack(info)

    assert ReceivedError(status).reason_name == "ERROR_REASON_UNSPECIFIED"


def test_a_ceiling_is_told_with_field_value_and_ceiling() -> None:
    error = LimitAboveCeilingError("limits.turns_max", 300, 200)

    assert error.metadata == {"field": "limits.turns_max", "value": "300", "ceiling": "200"}
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT


def test_long_texts_are_cut_so_that_the_status_fits_the_wire() -> None:
    """More than 8 KiB of details would replace the whole status by RESOURCE_EXHAUSTED."""
    status = ServiceError("x" * 100_000, thing="y" * 100_000, other="€" * 100_000).to_status()

    assert status.ByteSize() < 3_500


def test_many_bad_fields_are_named_as_far_as_a_status_holds_them() -> None:
    violations = {f"prompt.messages[{n}].text": "must not be empty" for n in range(3_000)}

    status = InvalidFieldError.many(violations).to_status()

    bad_request = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad_request)
    assert bad_request.field_violations[0].field == "prompt.messages[0].text"
    assert status.ByteSize() < 3_500


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "UNKNOWN", "INTERNAL"], ids=str.lower)
def test_a_call_whose_server_dies_is_told_from_one_that_failed(code: str) -> None:
    """The library says so in several ways, and callers ask again where nobody answered; a service
    of ours always gives a reason."""
    error = received(
        grpc.aio.AioRpcError(
            grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error"
        )
    )

    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE
