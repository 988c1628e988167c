"""The JSON Schema that a prompt wants its answer to satisfy, as it is sent on.

Only its form and size are checked: which keywords a model can be held to is the provider's to say,
and whether an answer satisfies them is the caller's to check.
"""

from __future__ import annotations

from typing import Any

import orjson

SCHEMA_BYTES_MAX = 64 << 10
SCHEMA_LEVELS_MAX = 64


class BadSchemaError(ValueError):
    """A text that is no schema that can be sent; says what would be."""


def compact_schema(text: str) -> str:
    """Return a schema without white space, its keys in the order given, in which models answer.

    Raises BadSchemaError.
    """
    if len(text.encode()) > SCHEMA_BYTES_MAX:
        raise BadSchemaError(f"may have at most {SCHEMA_BYTES_MAX} bytes")
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadSchemaError("must be JSON") from None
    if not isinstance(schema, dict):
        raise BadSchemaError("must be a JSON object, such as one with a type and properties")
    if not _is_within(schema, SCHEMA_LEVELS_MAX):
        raise BadSchemaError(f"may be nested at most {SCHEMA_LEVELS_MAX} levels deep")
    return orjson.dumps(schema).decode()


def _is_within(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_within(part, levels - 1) for part in parts)
