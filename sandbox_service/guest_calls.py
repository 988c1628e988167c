"""What the guest's runtime asks of its host: JSON requests, strictly typed, always hostile."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from sandbox_service.frames import Failure, Final, Natural, Question, Variable

REQUEST_BYTES_MAX = 48 << 20
"""A larger request stops the guest; the guest's own runtime refuses it before."""


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


class AskSubModels(Question, frozen=True, kw_only=True, tag="sub_calls", tag_field="call"):
    """Ask sub-models; I wait."""


class ReportEnd(Struct, frozen=True, tag="ended", tag_field="call"):
    """The cell, or the start of the session, is over."""

    ending: Literal["completed", "raised", "syntax_error", "exited", "out_of_memory"]
    error: Failure | None
    final: Final | None
    variables: Annotated[list[Variable], Meta(max_length=200)]


GuestCall = FetchCell | FetchMounts | FetchTexts | FillText | AskSubModels | ReportEnd


class Cell(Struct, frozen=True, kw_only=True):
    """Answer to FetchCell."""

    source: str
    number: int
    report: bool


class MountOutline(Struct, frozen=True, kw_only=True):
    """Part of the answer to FetchMounts."""

    variable: str
    kind: str
    count: int
    """Texts that it has."""


class TextOutline(Struct, frozen=True, kw_only=True):
    """Part of the answer to FetchTexts: a small text itself, or what to allocate for it."""

    name: str
    inline: str | None
    form: str
    """How Python stores it: ascii, latin1, ucs2, ucs4, or raw for bytes."""
    units: int
    """Characters, or bytes of a raw one."""


class SubModelOutcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Part of the answer to AskSubModels: a text, or why there is none."""

    text: str | None = None
    reason: str = ""
    message: str = ""
    is_limit: bool = False


class SubModelOutcomes(Struct, frozen=True):
    """Answer to AskSubModels, in the order of its prompts."""

    outcomes: list[SubModelOutcome]


_DECODER = msgspec.json.Decoder(GuestCall)


def decode(request: bytes) -> GuestCall | None:
    """Return what the guest asks; None for what is no request."""
    try:
        decoded: GuestCall = _DECODER.decode(request)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return decoded
