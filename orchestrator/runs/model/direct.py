"""A question over data so small that the root model is shown all of it, and may answer at once.

Whether its reply is an answer is decided as for any other; without one the loop follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from fathom.gateway.v1.generation_pb2 import Message

from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.model.question import confidence_words
from orchestrator.runs.patient_blobs import PatientBlobs

_BYTES_PER_TOKEN = 3
_WINDOW_PART = 2
"""Data and question take at most one part in this many of the window."""
_WINDOW_UNKNOWN_TOKENS = 16_384


def goes_direct(
    context: StoredContext, question: str, *, direct_tokens_max: int, window_tokens: int
) -> bool:
    """Return whether a context is small enough to be shown: by the caller's or the server's wish,
    and in the root model's window. A window of 0 is an unknown one."""
    if context.tokens_estimated > direct_tokens_max:
        return False
    size_bytes = context.size_bytes + len(question.encode())
    room_tokens = (window_tokens or _WINDOW_UNKNOWN_TOKENS) // _WINDOW_PART
    return size_bytes <= room_tokens * _BYTES_PER_TOKEN


def direct_demands(prompts: PromptBook, *, schema_json: str, confidence_min: float) -> str:
    """Return what is asked of the answer, to be put after the question; empty where nothing is."""
    schema = "\n\n" + prompts.text("direct_schema", schema=schema_json) if schema_json else ""
    return schema + confidence_words(prompts, confidence_min)


async def direct_messages(
    prompts: PromptBook,
    blobs: PatientBlobs,
    context: StoredContext,
    documents: Sequence[StoredDocument],
    question: str,
) -> list[Message]:
    """Return the messages: instructions, and the question as the loop puts it, with the data.

    Raises BlobMissingError or ObjectStoreError.
    """
    if context.kind is ContextKind.DOCUMENTS:
        texts = [
            f'<document name="{document.name}">\n'
            f"{await _text(blobs, context, document.offset_bytes, document.size_bytes)}"
            "\n</document>"
            for document in documents
        ]
        data = "\n\n".join(texts)
    else:
        data = await _text(blobs, context, context.offset_bytes, context.size_bytes)
    text = prompts.text("direct_question", question=question, data=data)
    return [
        Message(role=Message.ROLE_SYSTEM, text=prompts.text("direct_system")),
        Message(role=Message.ROLE_USER, text=text),
    ]


async def _text(blobs: PatientBlobs, context: StoredContext, offset: int, size: int) -> str:
    pieces = [piece async for piece in blobs.read(context.blob_key, offset=offset, size=size)]
    return b"".join(pieces).decode(errors="replace")
