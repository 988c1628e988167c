"""Resource names as the contract shapes them: `runs/{run}` and `contexts/{context}`."""

from __future__ import annotations

import re

from common.errors import InvalidFieldError

_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")


def read_name(field: str, name: str, *, collection: str) -> str:
    """Return the id in a resource name; raises InvalidFieldError naming the field."""
    prefix, _, identity = name.partition("/")
    if prefix != collection or not _ID.fullmatch(identity):
        raise InvalidFieldError(field, f"must be {collection}/ and an id; got {name[:80]!r}")
    return identity
