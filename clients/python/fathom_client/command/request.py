"""What was asked for on the command line: the question, the data and what it may take.

Read here and checked as far as that goes without a server; `settling.py` does the rest.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom_client.command import options
from fathom_client.command.progress_line import SEPARATOR
from fathom_client.inputs import (
    STDIN,
    InputError,
    Inputs,
    read_inputs,
    split_question,
    unicode_text,
)
from fathom_client.limits import Limits
from fathom_client.schemas import SchemaTextError, read_schema


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line."""

    question: str
    """The question."""
    inputs: Inputs | str
    """The data: files, or the name of what is stored, `contexts/{context}`."""
    limits: Limits
    """What the run may consume; under a profile, until that is settled, what was typed alone."""
    root_tier: str
    """Tier or model of the root model; empty for the server's."""
    sub_tier: str
    """Tier or model of sub-calls; empty for the server's."""
    answer_schema_json: str
    """JSON Schema of the answer; empty for none."""
    confidence_min: float | None
    """How sure the model must say that it is; None where it need not."""
    profile: str
    """`profiles/{profile}`; empty for none."""
    as_events: bool
    """True where standard output gets each event."""
    detach: bool
    """True to return once the run is created."""


def trust_line(inputs: Inputs | str, limits: Limits, *, profile: str = "") -> str:
    """Return what is about to be sent or read and may be spent, before any of it is.

    `profile` is one whose limits are not known here.
    """
    data = inputs if isinstance(inputs, str) else inputs.describe()
    known = [text for text in (limits.describe(), profile and f"else those of {profile}") if text]
    return SEPARATOR.join([data, f"limits {', '.join(known)}"])


def read_request(chosen: dict[str, Any]) -> Request:
    """Read what was asked for out of a verb's arguments; raises InputError."""
    limits, profile = options.limits_of(chosen), _named("profiles", chosen.get("profile"))
    arguments = list(chosen["arguments"])
    question = chosen["named_question"]
    if question is None:
        question, arguments = split_question(arguments)
    if not question.strip():
        raise InputError("the question is empty")
    paths = [*arguments, *chosen["files"], *_listed_paths(chosen["paths_from"])]
    if chosen["context"] and paths:
        raise InputError(f"--context names the data; leave {paths[0]} out")
    if not paths and not chosen["context"]:
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("no data: name files, directories or globs, or pipe text in")
        paths = [STDIN]
    return Request(
        question=unicode_text(question),
        inputs=_named("contexts", chosen["context"])
        or read_inputs(paths, read_stdin=_read_stdin, as_json=chosen["json_input"]),
        limits=limits if profile else limits.or_else(options.DEFAULT_LIMITS),
        root_tier=chosen["root_model"],
        sub_tier=chosen["sub_model"],
        answer_schema_json=_read_schema(chosen.get("schema", "")),
        confidence_min=chosen["confidence"],
        profile=profile,
        as_events=chosen["as_events"],
        detach=chosen["detach"],
    )


def _named(collection: str, name: str | None) -> str:
    """Return a resource's whole name, of which people leave the beginning out; empty for none."""
    return f"{collection}/{name}" if name and "/" not in name else name or ""


def _read_schema(text: str) -> str:
    try:
        return read_schema(text) if text else ""
    except SchemaTextError as error:
        raise InputError(f"--schema: {error}") from error


def _listed_paths(source: str | None) -> list[str]:
    if source is None:
        return []
    try:
        listed = _read_stdin() if source == STDIN else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"--paths-from: {source}: {error.strerror}") from error
    # Names of files need not be UTF-8, and may hold characters that end a line elsewhere.
    return [os.fsdecode(line) for line in listed.splitlines() if line.strip()]


def _read_stdin() -> bytes:
    # Not through `sys.stdin`: a thread that waits in it makes Python abort at its end.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stream:
        return stream.readall()
