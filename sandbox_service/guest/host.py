"""The one door out of the guest: a JSON request to the host, a JSON answer back.

The host treats every request as hostile; nothing here is a check that protects it.
"""

import json
from typing import Any

REQUEST_BYTES_MAX = 48 << 20
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder()
_NO_ROOM = b'{"call":"ended","ending":"out_of_memory","error":null,"final":null,"variables":[]}'


def ask(request: dict[str, Any]) -> Any:
    """Send one request and wait for its answer.

    Raises ValueError for a request larger than the host takes.
    """
    import _host  # type: ignore[import-not-found]  # exists in the guest only

    frame = _ENCODER.encode(request).encode("utf-8", "replace")
    if len(frame) > REQUEST_BYTES_MAX:
        raise ValueError(
            f"{len(frame):,} bytes in one call; at most {REQUEST_BYTES_MAX:,}: send less at a time"
        )
    answer = _host.call(frame)
    return _DECODER.raw_decode(answer.decode())[0] if answer else None


def tell_no_room() -> None:
    """Report that the cell left no memory for another; takes none itself."""
    import _host

    _host.call(_NO_ROOM)
