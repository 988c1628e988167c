"""Schemas of answers as people write them: a shorthand such as `name, age int`, a JSON Schema, or
a file of one. Whether a schema is a good one is the server's to say.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_TYPES = {
    "str": "string",
    "string": "string",
    "text": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
}
_FIELD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:[ \t]+([a-z]+)(\[\])?(\?)?)?")


class SchemaTextError(ValueError):
    """A text is no schema; the message says what would be one."""


def read_schema(text: str) -> str:
    """Return the JSON Schema that a text means: shorthand, JSON, or the path of a file with JSON.

    In the shorthand, fields are parted by commas; each is a name, a type where it is no text
    (int, float, bool, str), `[]` after the type for a list, and `?` for one that may be missing.
    Raises SchemaTextError.
    """
    if text.lstrip().startswith("{"):
        return _checked(text, "the schema")
    if "," not in text and ("/" in text or text.endswith(".json")):
        try:
            return _checked(Path(text).read_text(encoding="utf-8"), text)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise SchemaTextError(f"{text}: cannot be read: {why}") from error
    return _of_shorthand(text)


def _checked(text: str, name: str) -> str:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SchemaTextError(f"{name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise SchemaTextError(f"{name} is no JSON Schema: it must be an object")
    return text


def _of_shorthand(text: str) -> str:
    properties: dict[str, object] = {}
    required: list[str] = []
    for part in text.split(","):
        field = _FIELD.fullmatch(part.strip())
        if field is None or (field[2] or "str") not in _TYPES:
            raise SchemaTextError(
                f"{part.strip()!r} is no field: write a name and a type, such as "
                "'name, age int, tags str[], note str?', or name a JSON Schema file"
            )
        value: dict[str, object] = {"type": _TYPES[field[2] or "str"]}
        if field[1] in properties:
            raise SchemaTextError(f"{field[1]!r} is there twice")
        properties[field[1]] = {"type": "array", "items": value} if field[3] else value
        if not field[4]:
            required.append(field[1])
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return json.dumps(schema)
