"""What went wrong in a cell, for people and models: only the frames of the code itself."""

import traceback
from types import TracebackType
from typing import Any

from . import explanations, lazy_text

CELL_PREFIX = "<cell "
RUNTIME_PREFIX = "<fathom "
_SITE_REMARK = (
    ". Site initialization is disabled, did you forget to add the site-packages directory to "
    "sys.path or to enable your virtual environment?"
)
"""Python's guess at why a module is missing, which is wrong here."""
_MESSAGE_CHARACTERS_MAX = 2_000
_TRACEBACK_CHARACTERS_MAX = 16_000


def described(error: BaseException) -> dict[str, str]:
    """Return type, message (one line) and traceback of what ended a cell; never raises."""
    kind = type(error).__name__
    try:
        lines = str(error).strip().splitlines()
        message = lines[0][:_MESSAGE_CHARACTERS_MAX] if lines else ""
    except BaseException as broken:  # the cell's own __str__
        message = f"(its __str__ raises {type(broken).__name__})"
    try:
        trace = _bounded(_formatted(error))
    except BaseException:  # no memory or stack left to format it
        trace = ""
    return {
        "type": kind[:256],
        "message": message,
        "traceback": (trace or f"{kind}: {message}\n") + _hint(error),
    }


def _hint(error: BaseException) -> str:
    try:
        advice = lazy_text.advice(error) or explanations.advice(error)
    except BaseException:  # the cell's own __str__
        return ""
    return f"Hint: {advice}.\n" if advice else ""


def _formatted(error: BaseException) -> str:
    summary = traceback.TracebackException(type(error), error, _user_part(error.__traceback__))
    _drop_runtime_frames(summary, set())
    return "".join(summary.format()).replace(_SITE_REMARK, "")


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    """Skip the frames that led to the cell; keep all where the cell never began."""
    start = trace
    while start is not None and not start.tb_frame.f_code.co_filename.startswith(CELL_PREFIX):
        start = start.tb_next
    return start


def _drop_runtime_frames(summary: Any, seen: set[int]) -> None:
    if summary is None or id(summary) in seen:
        return
    seen.add(id(summary))
    if summary.stack:
        summary.stack[:] = [
            frame
            for frame in summary.stack
            if not frame.filename.startswith(("<turn ", RUNTIME_PREFIX))
        ]
    _drop_runtime_frames(summary.__cause__, seen)
    _drop_runtime_frames(summary.__context__, seen)
    for member in summary.exceptions or ():
        _drop_runtime_frames(member, seen)


def _bounded(text: str) -> str:
    if len(text) <= _TRACEBACK_CHARACTERS_MAX:
        return text
    half = _TRACEBACK_CHARACTERS_MAX // 2
    dropped = len(text) - 2 * half
    return f"{text[:half]}\n  [{dropped:,} characters dropped]\n{text[-half:]}"
