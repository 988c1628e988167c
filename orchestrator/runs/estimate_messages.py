"""EstimateRun's messages: what is asked, read field by field, and the estimate put on the wire."""

from __future__ import annotations

from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import RunSpec

from common.errors import InvalidFieldError
from orchestrator.runs.estimate import Estimate, Size

_NOT_STORED = "contexts/not-stored"
"""Stands where a spec must name a context and there is none."""
_BYTES_MAX = 1 << 50
_DOCUMENTS_MAX = 1_000_000_000


def read_request(request: pb.EstimateRunRequest) -> tuple[RunSpec, Size | None]:
    """Return the spec, and the size of a context that is not stored; raises InvalidFieldError."""
    if not request.context_bytes and not request.context_documents:
        return request.spec, None
    if request.spec.context:
        raise InvalidFieldError("context_bytes", "must be unset where spec.context is set")
    if not 0 <= request.context_bytes <= _BYTES_MAX:
        raise InvalidFieldError("context_bytes", f"must be 0 to {_BYTES_MAX}")
    if not 0 <= request.context_documents <= _DOCUMENTS_MAX:
        raise InvalidFieldError("context_documents", f"must be 0 to {_DOCUMENTS_MAX}")
    spec = RunSpec()
    spec.CopyFrom(request.spec)
    spec.context = _NOT_STORED
    documents = max(request.context_documents, 1)
    return spec, Size(size_bytes=request.context_bytes, documents=documents)


def response(estimate: Estimate) -> pb.EstimateRunResponse:
    """Return the estimate as it is sent."""
    low, high = estimate.low, estimate.high
    made = pb.EstimateRunResponse(
        calls=_range(low.calls, high.calls),
        tokens=_range(low.tokens, high.tokens),
        cost_usd_nanos=_range(low.cost_usd_nanos, high.cost_usd_nanos),
        runs_considered=estimate.runs_considered,
        limits=estimate.spec.limits,
    )
    made.time_low.FromNanoseconds(int(low.time_s * 1e9))
    made.time_high.FromNanoseconds(int(high.time_s * 1e9))
    return made


def _range(low: float, high: float) -> pb.Range:
    """Return a range of whole numbers that holds the one given."""
    return pb.Range(low=int(low), high=-int(-high // 1))
