"""A written answer in the form that a JSON Schema asks for, as of a model that is held to one.

It covers the keywords that schemas of answers are made of, and is no validator: where a schema
asks for more, such as a pattern, the answer may not satisfy it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LEVELS_MAX = 20
_ITEMS_MAX = 20


def answer_in_form(text: str, schema: Mapping[str, Any]) -> str:
    """Return a JSON text: texts in it say `text`, numbers are its first number, and of several
    choices the one that it names is taken."""
    return json.dumps(_value(text, schema, schema, _LEVELS_MAX), ensure_ascii=False)


def _value(text: str, schema: Any, whole: Mapping[str, Any], levels: int) -> Any:
    if not isinstance(schema, Mapping) or not levels:
        return text
    for key in ("$ref", "const", "enum", "anyOf", "oneOf"):
        if key in schema:
            return _chosen(text, key, schema[key], whole, levels - 1)
    match _type_of(schema):
        case "object":
            parts = schema.get("properties", {})
            return {name: _value(text, part, whole, levels - 1) for name, part in parts.items()}
        case "array":
            count = min(max(int(schema.get("minItems", 1)), 1), _ITEMS_MAX)
            return [_value(text, schema.get("items", {}), whole, levels - 1)] * count
        case "integer":
            return int(_number_in(text))
        case "number":
            return _number_in(text)
        case "boolean":
            return bool(re.match(r"\s*(yes|true)\b", text, re.IGNORECASE))
        case "null":
            return None
    return text


def _chosen(text: str, key: str, given: Any, whole: Mapping[str, Any], levels: int) -> Any:
    if key == "const":
        return given
    if key == "$ref":
        return _value(text, _referred(str(given), whole), whole, levels)
    choices = given if isinstance(given, list) and given else [{}]
    if key == "enum":
        named = (each for each in choices if str(each).lower() in text.lower())
        return next(named, choices[0])
    return _value(text, choices[0], whole, levels)


def _type_of(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return str(kind[0] if isinstance(kind, list) and kind else kind)


def _referred(reference: str, whole: Mapping[str, Any]) -> Any:
    """Return the part of the whole schema that `#/…` names; an empty one where there is none."""
    part: Any = whole
    for name in reference.removeprefix("#").strip("/").split("/"):
        part = part.get(name, {}) if isinstance(part, Mapping) and name else part
    return part


def _number_in(text: str) -> float:
    found = _NUMBER.search(text)
    return float(found[0]) if found else 0.0
