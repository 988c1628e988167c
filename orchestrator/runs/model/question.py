"""The first message to the root model: the question, and the facts of the data it is about."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.runs.limits import RunLimits
from orchestrator.runs.model.prompt_book import PromptBook

_NAMES_SHOWN = 20
_LOADED_CHARACTERS = 4 << 20
"""A text of so many is within what the smallest session loads, whatever its characters are."""
_SHAPES = {
    ContextKind.TEXT: "one text, a `str`",
    ContextKind.JSON: "what `json.loads` gave for one JSON value",
}
_LARGE_SHAPES = {
    ContextKind.TEXT: "one text: a `str`, or a `LazyText` where it is too large for that",
    ContextKind.JSON: "what `json.loads` gave for one JSON value, or a lazy sequence or mapping "
    "of its items where it is too large for that",
}


def question_message(
    prompts: PromptBook,
    question: str,
    context: StoredContext,
    documents: Sequence[StoredDocument],
    limits: RunLimits,
    *,
    schema_json: str = "",
    confidence_min: float = 0.0,
    earlier: str = "",
) -> str:
    """Return the message; `schema_json` is the answer's schema, empty for none; a
    `confidence_min` of 0 asks for no confidence; `earlier` tells of earlier questions."""
    malformed = ""
    if context.shape.malformed_sequences:
        count = context.shape.malformed_sequences
        malformed = f" {count:,} byte sequences were not UTF-8 and are U+FFFD in it."
    return prompts.text(
        "question",
        question=question.strip(),
        earlier=f"\n\n{earlier}" if earlier else "",
        shape=_shape(context),
        characters=context.shape.characters,
        lines=context.shape.lines,
        tokens=context.tokens_estimated,
        documents=_names(documents),
        malformed=malformed,
        turns=limits.turns_max,
        sub_calls=limits.sub_calls_max,
        time=_duration(limits.time_max_s),
        schema=_schema(prompts, schema_json),
        confidence=confidence_words(prompts, confidence_min),
        begin=prompts.text("begin" if limits.turns_max > 1 else "begin_only_turn"),
    )


def confidence_words(prompts: PromptBook, minimum: float) -> str:
    """Return what the model is told of the confidence that it must have, after an empty line;
    empty where it need have none."""
    return "\n\n" + prompts.text("confidence", minimum=f"{minimum:g}") if minimum else ""


def _shape(context: StoredContext) -> str:
    is_large = context.shape.characters > _LOADED_CHARACTERS
    if context.kind is not ContextKind.DOCUMENTS:
        return (_LARGE_SHAPES if is_large else _SHAPES)[context.kind]
    form = "a `dict`, or a lazy mapping where it is too large for that," if is_large else "a `dict`"
    return f"{form} from the name to the text of {context.document_count:,} documents"


def _names(documents: Sequence[StoredDocument]) -> str:
    if not documents:
        return ""
    lines = [f"- {d.name} ({d.characters:,} characters)" for d in documents[:_NAMES_SHOWN]]
    if len(documents) > _NAMES_SHOWN:
        lines.append(f"- and {len(documents) - _NAMES_SHOWN:,} more: see `list(context)`")
    return "\n\nThe documents:\n" + "\n".join(lines)


def _schema(prompts: PromptBook, schema_json: str) -> str:
    return f"\n\n{prompts.text('answer_schema', schema=schema_json)}" if schema_json else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
