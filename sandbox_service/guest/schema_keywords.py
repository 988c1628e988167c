"""The keywords of JSON Schema that are known here: which values each may have, and where further
schemas are within them.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "string": ("a string", lambda value: isinstance(value, str)),
    "number": ("a number", lambda value: is_number(value)),
    "integer": ("a whole number", lambda value: is_number(value) and value == int(value)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "object": ("an object", lambda value: isinstance(value, dict)),
    "array": ("an array", lambda value: isinstance(value, list)),
    "null": ("null", lambda value: value is None),
}
"""What each type is called, and which values are of it."""
COMPARED: dict[str, tuple[str, str, Callable[[Any, Any], bool]]] = {
    "minimum": ("number", "at least {}", lambda v, n: v >= n),
    "maximum": ("number", "at most {}", lambda v, n: v <= n),
    "exclusiveMinimum": ("number", "more than {}", lambda v, n: v > n),
    "exclusiveMaximum": ("number", "less than {}", lambda v, n: v < n),
    "multipleOf": ("number", "a multiple of {}", lambda v, n: _is_multiple(v, n)),
    "minLength": ("string", "{} characters or more", lambda v, n: len(v) >= n),
    "maxLength": ("string", "{} characters or fewer", lambda v, n: len(v) <= n),
    "minItems": ("array", "{} items or more", lambda v, n: len(v) >= n),
    "maxItems": ("array", "{} items or fewer", lambda v, n: len(v) <= n),
    "minProperties": ("object", "{} members or more", lambda v, n: len(v) >= n),
    "maxProperties": ("object", "{} members or fewer", lambda v, n: len(v) <= n),
}
"""Keywords that compare with a number: the type of values they are about, in words, the rule."""
_ONE = ("items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else")
"""Keywords whose value is a schema."""
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_REFUSED = ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$anchor", "$dynamicAnchor")
_VALUE_CHARACTERS = 60


def check_keyword(key: str, value: Any, path: str) -> None:
    """Raise ValueError for a keyword's value that is wrong, and for one that is not checked."""
    if key in _REFUSED:
        raise ValueError(f"schema: {path} is not offered here; say it with other keywords")
    words, is_well = _FORMS.get(key, ("", lambda _: True))
    if not is_well(value):
        raise ValueError(f"schema: {path} must be {words}, is {shown(value)}")


def inner_schemas(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schemas within a keyword's value, each with its place there."""
    if key in _ONE:
        yield "", value
    elif key in _LISTS:
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif key in _MAPS:
        yield from ((f".{name}", part) for name, part in value.items())


def is_number(value: Any) -> bool:
    """Tell whether a value is a number of JSON; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Any) -> str:
    """Return the beginning of a value, as JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "..."


def _is_multiple(value: Any, of: Any) -> bool:
    if isinstance(value, int) and isinstance(of, int):
        return value % of == 0
    share = value / of
    return math.isfinite(share) and abs(share - round(share)) < 1e-9 * max(1.0, abs(share))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_types(value: Any) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) and name in TYPES for name in names)


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


_NUMBER = ("a number", is_number)
_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys([*COMPARED, "minContains", "maxContains"], _NUMBER),
    **dict.fromkeys(_LISTS, ("a list of schemas", lambda value: isinstance(value, list))),
    **dict.fromkeys(_MAPS, ("a dict of schemas", _is_dict)),
    "type": (f"one of {', '.join(TYPES)}, or a list of them", _are_types),
    "multipleOf": ("a number above 0", lambda value: is_number(value) and value > 0),
    "enum": ("a list", lambda value: isinstance(value, list)),
    "required": ("a list of names", _are_names),
    "pattern": ("a regular expression", _is_pattern),
    "patternProperties": (
        "a dict of schemas by regular expressions",
        lambda value: _is_dict(value) and all(map(_is_pattern, value)),
    ),
    "dependentRequired": (
        "a dict of lists of names",
        lambda value: _is_dict(value) and all(map(_are_names, value.values())),
    ),
}
"""What a keyword's value must be, in words, and whether it is that."""
