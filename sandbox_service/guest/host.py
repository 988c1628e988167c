"""The one door out of the guest: a JSON request to the host, a JSON answer back.

The host treats every request as hostile; nothing here is a check that protects it.
"""

import json
from typing import Any

_ENCODER = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder()
_ALWAYS = ("ended", "findings")
"""Reports that have bounds of their own."""
_limits = {"value_bytes": 48 << 20}
"""In the session's image, as everything of the guest's is; each cell brings it anew."""
_NO_ROOM = b'{"call":"ended","ending":"out_of_memory","error":null,"final":null,"variables":[]}'


def ask(request: dict[str, Any]) -> Any:
    """Send one request and wait for its answer.

    Raises ValueError for a request larger than the session's limit of a value; reports
    have bounds of their own.
    """
    answer = fetch(request)
    return _DECODER.raw_decode(answer.decode())[0] if answer else None


def fetch(request: dict[str, Any]) -> bytes:
    """Send one request and wait for its answer, whose form depends on what is asked."""
    import _host  # type: ignore[import-not-found]  # exists in the guest only

    frame = _ENCODER.encode(request).encode("utf-8", "replace")
    if len(frame) > value_bytes_max() and request["call"] not in _ALWAYS:
        raise ValueError(
            f"{len(frame):,} bytes in one call; at most {value_bytes_max():,}: send less at a time"
        )
    answer: bytes = _host.call(frame)
    return answer


def value_bytes_max() -> int:
    """Return how large one value may be that leaves the guest, in bytes."""
    return _limits["value_bytes"]


def limit_values(bytes_max: int) -> None:
    """Set it to what the session of the running cell may have."""
    _limits["value_bytes"] = bytes_max


def tell_no_room() -> None:
    """Report that the cell left no memory for another; takes none itself."""
    import _host

    _host.call(_NO_ROOM)
