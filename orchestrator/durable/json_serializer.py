"""How the durable engine writes down what it is given: JSON, never pickle, since whoever can write
to the database must not be able to run code here.

What we give it is ids and sequences; its own errors are kept as class name and message.
"""

from __future__ import annotations

import json
from typing import Any

from dbos import Serializer

_ERROR = "fathom.error"


class RecordedError(Exception):
    """An error that was written down: the class's name and the message are all that is left."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class JsonSerializer(Serializer):
    """The serializer."""

    def serialize(self, data: Any) -> str:
        """Return JSON; TypeError for what JSON does not have, other than exceptions and tuples."""
        return json.dumps(data, default=_encode, separators=(",", ":"))

    def deserialize(self, serialized_data: str) -> Any:
        """Return what was serialized; ValueError for anything else than JSON."""
        return json.loads(serialized_data, object_hook=_decode)

    def name(self) -> str:
        """Return the format's name, which is stored with each value."""
        return "fathom_json"


def _encode(value: object) -> object:
    if isinstance(value, RecordedError):
        return {_ERROR: [value.kind, value.message]}
    if isinstance(value, BaseException):
        return {_ERROR: [type(value).__name__, str(value)]}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _decode(found: dict[str, Any]) -> Any:
    match found:
        case {"fathom.error": [str(kind), str(message)]} if len(found) == 1:
            return RecordedError(kind, message)
        case _:
            return found
