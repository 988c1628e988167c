"""What the model is shown of a cell's output: all of it, or its head and tail.

The tail stays because results are printed last, the head because errors in the plan show first.
The line between says exactly what is missing, so that the model knows to look again.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ShownOutput:
    """A cell's output as the model sees it."""

    text: str
    """What is shown."""
    is_whole: bool
    """True where nothing was left out here."""


def shorten(output: str, *, characters_max: int, bytes_dropped: int = 0) -> ShownOutput:
    """Keep at most `characters_max` characters of `output`, half from each end.

    `bytes_dropped` is what the sandbox kept nothing of, after the output that it kept.
    """
    dropped = ""
    if bytes_dropped:
        dropped = (
            f"\n[... {bytes_dropped:,} more bytes were printed after this and were not kept. "
            "Print less.]"
        )
    if len(output) <= characters_max:
        return ShownOutput(output + dropped, is_whole=not bytes_dropped)
    head = characters_max - characters_max // 2
    tail = characters_max - head
    hidden = len(output) - characters_max
    middle = (
        f"\n[... {hidden:,} of {len(output):,} characters not shown. They are not in the variables"
        " unless you put them there: print a slice of what you need, or pass it to llm_query.]\n"
    )
    end = output[len(output) - tail :] if tail else ""
    return ShownOutput(output[:head] + middle + end + dropped, is_whole=False)
