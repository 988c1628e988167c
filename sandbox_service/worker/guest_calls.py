"""What the guest's runtime asks of its host: JSON requests, strictly typed, always hostile."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from sandbox_service.frames import (
    CheckMode,
    ChildQuestion,
    Failure,
    Final,
    Finding,
    HostToolQuestion,
    Natural,
    Question,
    Variable,
)
from sandbox_service.worker.search import MATCHES_MAX, PATTERN_CHARACTERS_MAX

REQUEST_BYTES_MAX = 48 << 20
"""A larger request is refused unread, whatever the session may have; see also Cell."""
REPORT_BYTES_MAX = 16 << 20
"""What the report of a cell's end may take, answer, traceback and variables together."""


class FetchCell(Struct, frozen=True, tag="cell", tag_field="call"):
    """Give me the cell to run."""


class FetchMounts(Struct, frozen=True, tag="mounts", tag_field="call"):
    """Tell me which contexts to make."""


class FetchTexts(Struct, frozen=True, tag="texts", tag_field="call"):
    """Give me the texts of a context, as many as fit, from position `start`."""

    mount: Natural
    start: Natural


class FillText(Struct, frozen=True, tag="fill", tag_field="call"):
    """Write a text's code units to an address in my memory."""

    mount: Natural
    text: Natural
    address: Natural


class LazyCall(Struct, frozen=True, kw_only=True):
    """What every question about a lazy text names; positions are characters of the text."""

    mount: Natural
    text: Natural


class ReadText(LazyCall, frozen=True, kw_only=True, tag="read", tag_field="call"):
    """Give me these characters, or the first of them; the answer is UTF-8 after its tag."""

    start: Natural
    stop: Natural


class SpanLines(LazyCall, frozen=True, kw_only=True, tag="span", tag_field="call"):
    """Tell me where these lines stand."""

    start: Natural
    stop: Natural


class FindText(LazyCall, frozen=True, kw_only=True, tag="find", tag_field="call"):
    """Look for a literal, its first place, its last one, or how many there are."""

    needle: Annotated[str, Meta(min_length=1, max_length=PATTERN_CHARACTERS_MAX)]
    start: Natural
    stop: Natural
    what: Literal["first", "last", "count"]


class GrepText(LazyCall, frozen=True, kw_only=True, tag="grep", tag_field="call"):
    """Look for a pattern."""

    pattern: Annotated[str, Meta(max_length=PATTERN_CHARACTERS_MAX)]
    ignore_case: bool
    start: Natural
    stop: Natural
    limit: Annotated[int, Meta(ge=1, le=MATCHES_MAX)]
    time_s: Annotated[float, Meta(ge=0, le=1e6)]


class AskSubModels(Question, frozen=True, kw_only=True, tag="sub_calls", tag_field="call"):
    """Ask sub-models; I wait."""


class AskChildRuns(ChildQuestion, frozen=True, kw_only=True, tag="child_runs", tag_field="call"):
    """Ask child runs; I wait."""


class AskHostTools(HostToolQuestion, frozen=True, kw_only=True, tag="host_tools", tag_field="call"):
    """Call host tools; I wait."""


class ReportFindings(Struct, frozen=True, tag="findings", tag_field="call"):
    """The check of the cell's code noticed this; the cell has not run yet."""

    findings: Annotated[list[Finding], Meta(min_length=1, max_length=20)]


class ReportEnd(Struct, frozen=True, tag="ended", tag_field="call"):
    """The cell, or the start of the session, is over."""

    ending: Literal["completed", "raised", "syntax_error", "exited", "out_of_memory", "refused"]
    error: Failure | None
    final: Final | None
    variables: Annotated[list[Variable], Meta(max_length=200)]


class ReadItems(LazyCall, frozen=True, kw_only=True, tag="items", tag_field="call"):
    """Give me items of a large JSON array or object, at least one, or as many as fit."""

    table: Natural
    start: Natural
    stop: Natural
    keys_only: bool
    """Leave the values out, for an object's keys alone."""


LazyQuestion = ReadText | SpanLines | FindText | GrepText | ReadItems
GuestCall = (
    FetchCell
    | FetchMounts
    | FetchTexts
    | FillText
    | LazyQuestion
    | AskSubModels
    | AskChildRuns
    | AskHostTools
    | ReportFindings
    | ReportEnd
)


Asks = AskSubModels | AskChildRuns | AskHostTools
"""What is answered by others, while the guest waits."""


class Cell(Struct, frozen=True, kw_only=True):
    """Answer to FetchCell."""

    source: str
    number: int
    run: str
    """The run that it is of; empty where that is not known."""
    report: bool
    value_bytes_max: int
    """A larger request than this is refused, but for the report of the end."""
    check: CheckMode


class MountOutline(Struct, frozen=True, kw_only=True):
    """Part of the answer to FetchMounts."""

    variable: str
    kind: str
    count: int
    """Texts that it has."""
    is_lazy: bool
    """Whether its texts stay with the host until they are asked for."""
    value_bytes_max: int
    """Largest part of a lazy one to make a value of at a time."""


class TextOutline(Struct, frozen=True, kw_only=True):
    """Part of the answer to FetchTexts: a small text itself, or what to allocate for it."""

    name: str
    inline: str | None
    form: str
    """How Python stores it: ascii, latin1, ucs2, ucs4, or raw for bytes."""
    units: int
    """Characters, or bytes of a raw one."""
    is_lazy: bool = False
    """Whether it is too large to be made a `str` of."""


class LineSpan(Struct, frozen=True, kw_only=True):
    """Answer to SpanLines: characters from the first line's begin to the last one's end."""

    start: int
    stop: int
    count: int
    """Lines of the whole text; an empty one after the last line feed counts."""


class SubModelOutcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Part of the answer to AskSubModels or AskChildRuns: a text, or why there is none."""

    text: str | None = None
    is_json: bool = False
    reason: str = ""
    message: str = ""
    is_limit: bool = False
    run: str = ""
    limit: str = ""


class SubModelOutcomes(Struct, frozen=True):
    """Answer to AskSubModels or AskChildRuns, in the order of what was asked."""

    outcomes: list[SubModelOutcome]


_DECODER = msgspec.json.Decoder(GuestCall)


def decode(request: bytes) -> GuestCall | None:
    """Return what the guest asks; None for what is no request."""
    try:
        decoded: GuestCall = _DECODER.decode(request)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return decoded
