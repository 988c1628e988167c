"""A written answer in the form that a JSON Schema asks for, as of a model that is held to one.

It covers the keywords that schemas of answers are made of, and is no validator: where a schema
asks for more, such as a pattern, the answer may not satisfy it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LEVELS_MAX = 20
_ITEMS_MAX = 20

Place: TypeAlias = Mapping[str, Any]
"""Where something stands: `quote`, `document`, `start` and `end`."""


def answer_in_form(text: str, schema: Mapping[str, Any]) -> str:
    """Return a JSON text: texts in it say `text`, numbers are its first number or the one after the
    field's name, and of several choices the one that it names is taken."""
    return json.dumps(value_in_form(text, schema, ()), ensure_ascii=False)


def value_in_form(text: str, schema: Mapping[str, Any], places: Sequence[Place]) -> Any:
    """Return such an answer as a value. Objects with a `quote` tell of `places`, one each."""
    return _Form(text, schema, places).value(schema)


@dataclass(frozen=True)
class _Form:
    """What a value is made of, and where in the schema it stands."""

    text: str
    whole: Mapping[str, Any]
    places: Sequence[Place]
    name: str = ""
    levels: int = _LEVELS_MAX

    def value(self, schema: Any) -> Any:
        """Return what stands for one part of the schema."""
        if not isinstance(schema, Mapping) or not self.levels:
            return self.text
        below = replace(self, levels=self.levels - 1)
        for key in ("$ref", "const", "enum", "anyOf", "oneOf"):
            if key in schema:
                return below.chosen(key, schema[key])
        match _type_of(schema):
            case "object":
                return below.object_of(schema)
            case "array":
                return below.array_of(schema)
            case "integer":
                return int(self.number())
            case "number":
                return self.number()
            case "boolean":
                return bool(re.match(r"\s*(yes|true)\b", self.text, re.IGNORECASE))
            case "null":
                return None
        return self.text[: schema.get("maxLength")]

    def object_of(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        parts = schema.get("properties", {})
        place = self.places[0] if "quote" in parts and self.places else {}
        form = self
        required = schema.get("required", parts)
        is_told = any(_type_of(self.resolved(part)) == "string" for part in parts.values())
        value: dict[str, Any] = {}
        for name, part in parts.items():
            if name in place:
                value[name] = place[name]
            elif name in required:
                value[name] = replace(form, name=name).field(part, is_told)
                if form.takes_places(part):
                    # They are told once: a second list of them would say something else.
                    form = replace(self, places=())
        return value

    def field(self, schema: Any, is_told: bool) -> Any:
        """Return a field's value: a list that may be empty is, where another field has the answer,
        unless it is the one for places."""
        part = self.resolved(schema)
        is_list = isinstance(part, Mapping) and _type_of(part) == "array"
        if is_list and is_told and not part.get("minItems") and not self.takes_places(part):
            return []
        return self.value(schema)

    def array_of(self, schema: Mapping[str, Any]) -> list[Any]:
        items, least = self.resolved(schema.get("items", {})), int(schema.get("minItems", 0))
        if self.places and isinstance(items, Mapping) and "quote" in items.get("properties", {}):
            most = min(int(schema.get("maxItems", _ITEMS_MAX)), _ITEMS_MAX)
            return [replace(self, places=[place]).value(items) for place in self.places[:most]]
        return [self.value(items)] * min(max(least, 1), _ITEMS_MAX)

    def takes_places(self, schema: Any, levels: int = 6) -> bool:
        """Tell whether places go somewhere below a part of the schema, enough of them."""
        part = self.resolved(schema)
        if not levels or not self.places or not isinstance(part, Mapping):
            return False
        if _type_of(part) == "array":
            is_enough = len(self.places) >= int(part.get("minItems", 0))
            return is_enough and self.takes_places(part.get("items"), levels - 1)
        inner = part.get("properties", {})
        return "quote" in inner or any(self.takes_places(p, levels - 1) for p in inner.values())

    def chosen(self, key: str, given: Any) -> Any:
        if key == "const":
            return given
        if key == "$ref":
            return self.value(_referred(str(given), self.whole))
        choices = given if isinstance(given, list) and given else [{}]
        if key == "enum":
            named = (each for each in choices if str(each).lower() in self.text.lower())
            return next(named, choices[0])
        return self.value(choices[0])

    def resolved(self, schema: Any) -> Any:
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        return schema if reference is None else _referred(str(reference), self.whole)

    def number(self) -> float:
        """Return the first number after the field's name, and without one the first."""
        words = re.escape(self.name.replace("_", " "))
        after = re.search(rf"\b{words}\b\D*?({_NUMBER.pattern})", self.text, re.IGNORECASE)
        found = after[1] if self.name and after else _NUMBER.search(self.text)
        return float(found if isinstance(found, str) else found[0]) if found else 0.0


def _type_of(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "string"
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return str(kind[0] if isinstance(kind, list) and kind else kind)


def _referred(reference: str, whole: Mapping[str, Any]) -> Any:
    """Return the part of the whole schema that `#/…` names; an empty one where there is none."""
    part: Any = whole
    for name in reference.removeprefix("#").strip("/").split("/"):
        part = part.get(name, {}) if isinstance(part, Mapping) and name else part
    return part
