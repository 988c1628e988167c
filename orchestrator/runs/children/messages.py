"""RunChild on the wire: requests read and checked field by field."""

from __future__ import annotations

from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb

from common.errors import InvalidFieldError
from orchestrator.runs.children.child_runs import ChildOrder
from orchestrator.runs.children.given import Given, JsonValue, NamedTexts, OneText, Slice, Text


def read_order(request: pb.RunChildRequest) -> ChildOrder:
    """Return what is asked for; raises InvalidFieldError."""
    return ChildOrder(
        request_id=request.request_id,
        question=request.question,
        given=_given(request.context) if request.HasField("context") else None,
        limits=request.limits,
        root_tier=request.root_tier,
        sub_tier=request.sub_tier,
        answer_schema_json=request.answer_schema_json,
        siblings=request.siblings or 1,
        sub_calls_left=request.sub_calls_left if request.HasField("sub_calls_left") else None,
    )


def _given(context: pb.ChildContext) -> Given:
    kind = context.WhichOneof("kind")
    if kind == "text":
        return OneText(_text("context.text", context.text))
    if kind == "json":
        return JsonValue(context.json)
    if kind == "documents":
        documents = context.documents.documents
        return NamedTexts([(d.name, _text("context.documents.text", d.text)) for d in documents])
    raise InvalidFieldError("context", "must have a text, a JSON value or documents")


def _text(field: str, text: pb.ChildText) -> Text:
    source = text.WhichOneof("source")
    if source == "text":
        return text.text
    if source == "slice":
        where = text.slice
        return Slice(where.document, where.start, where.end if where.HasField("end") else None)
    raise InvalidFieldError(field, "must be a text, or a part of the parent's context")
