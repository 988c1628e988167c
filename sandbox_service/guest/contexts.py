"""Making the input of a run: the host fills large texts straight into their memory.

A text is allocated once at its final size and form, then its characters are overwritten by
the host before any cell has seen it; so 100 MB cost one copy, not three.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from . import host
from .lazy_documents import LazyDocuments
from .lazy_json import LazyItems
from .lazy_text import LazyText

_FILLERS = {"ascii": "\0", "latin1": "\xff", "ucs2": "\u0100", "ucs4": "\U00010000", "raw": b"\0"}
_WIDTHS = {"ascii": 1, "latin1": 1, "ucs2": 2, "ucs4": 4, "raw": 1}


def load(namespace: dict[str, Any]) -> None:
    """Ask the host what there is to load and load it into the namespace."""
    for number, mount in enumerate(host.ask({"call": "mounts"})):
        if mount["is_lazy"]:
            namespace[mount["variable"]] = _lazy(number, mount, namespace)
            continue
        texts = _texts(number, mount["count"])
        if mount["kind"] == "documents":
            namespace[mount["variable"]] = texts
        elif mount["kind"] == "json":
            namespace[mount["variable"]] = _parsed(texts.popitem()[1])
        else:
            namespace[mount["variable"]] = texts.popitem()[1]


def _lazy(number: int, mount: dict[str, Any], namespace: dict[str, Any]) -> Any:
    outlines = list(_outlines(number, mount["count"]))
    if mount["kind"] == "documents":
        return LazyDocuments(number, outlines, mount["value_bytes_max"])
    if mount["kind"] == "json":
        return LazyItems(number, 0, 1)[0]
    text = LazyText(number, 0, outlines[0]["units"], mount["value_bytes_max"])
    if text.characters > sys.maxsize:
        namespace["len"] = length  # Python's own can count no further
    return text


def length(value: Any, /) -> int:
    """Return the number of items in a container, also where they are more than `len` counts."""
    try:
        return len(value)
    except OverflowError:
        return int(type(value).__len__(value))


def _parsed(text: str | bytes) -> Any:
    """Read JSON as a small text and as the bytes of a large one, which take less memory."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return json.loads(text.removeprefix("\ufeff"))


def _texts(mount: int, count: int) -> dict[str, Any]:
    return {
        outline["name"]: _text(mount, number, outline)
        for number, outline in enumerate(_outlines(mount, count))
    }


def _outlines(mount: int, count: int) -> Iterator[dict[str, Any]]:
    position = 0
    while position < count:
        for outline in host.ask({"call": "texts", "mount": mount, "start": position}):
            yield outline
            position += 1


def _text(mount: int, number: int, outline: dict[str, Any]) -> Any:
    if outline["inline"] is not None:
        return outline["inline"]
    form, units = outline["form"], outline["units"]
    value = _FILLERS[form] * units
    # The units stand at the end of the object, followed by one terminator.
    address = id(value) + sys.getsizeof(value) - _WIDTHS[form] * (units + 1)
    host.ask({"call": "fill", "mount": mount, "text": number, "address": address})
    return value
