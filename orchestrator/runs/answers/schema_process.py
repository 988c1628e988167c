"""A process that checks one text against one JSON Schema and ends. Both are strangers': a schema
can take for ever or all memory, and deep nesting ends the process that follows it.

Started by `answer_schema` with one JSON object on standard input. It prints a line each for what
it knows: first whether the text fits, then what is wrong, which may take more than there is.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jsonschema_rs

CPU_MAX_S = 2
MEMORY_MAX_BYTES = 1 << 30
SCHEMA_LEVELS_MAX = 64
ANSWER_LEVELS_MAX = 128
ERRORS_MAX = 20
ERROR_CHARACTERS_MAX = 300
_VALUE_CHARACTERS = 60
_PATH_CHARACTERS = 120
_BRANCH_LEVELS_MAX = 4
_DIGITS_MAX = 400
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_FENCED = re.compile(r"^[ \t]*```[\w-]*[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPES = {
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}


class SchemaError(Exception):
    """The schema is none, or not one that is taken."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")


def main() -> None:
    """Check what standard input says: `schema`, and `answer` or null for the schema alone."""
    _limit_oneself()
    order = json.load(sys.stdin)
    try:
        validator = _validator(order["schema"])
    except SchemaError as error:
        _say({"problem": str(error)[:ERROR_CHARACTERS_MAX]})
        return
    if order["answer"] is None:
        # One that takes too long for the smallest value is found out here.
        validator.is_valid(None)
        _say({"problem": ""})
        return
    try:
        text, value = _fitting(validator, order["answer"])
    except ValueError as error:
        _say({"fits": False})
        _say({"errors": [f"$: {error}"[:ERROR_CHARACTERS_MAX]]})
        return
    _say({"fits": text is not None, "text": text or ""})
    if text is None:
        _say({"errors": _errors(validator, value)})


def check_schema_text(text: str) -> None:
    """Raise SchemaError for what is no schema; in the caller's own process, so that the text must
    be from somebody who is trusted."""
    _validator(text)


def _limit_oneself() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _validator(text: str) -> jsonschema_rs.Draft202012Validator:
    try:
        schema = _parsed(text, SCHEMA_LEVELS_MAX)
    except ValueError as error:
        raise SchemaError("$", str(error)) from None
    if not isinstance(schema, dict | bool):
        raise SchemaError("$", f"must be an object, true or false; is {_shown(schema)}")
    if isinstance(schema, dict) and str(schema.get("$schema", _DRAFT)).rstrip("#") != _DRAFT:
        raise SchemaError("$['$schema']", f"must be {_DRAFT}, or left out")
    _check_references(schema, [])
    try:
        return jsonschema_rs.Draft202012Validator(
            schema,
            validate_formats=True,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(),  # an engine that takes linear time
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(_path(error.instance_path), _of_schema(error)) from None


def _check_references(part: object, path: list[str | int]) -> None:
    """Raise SchemaError for a reference to what is not in the schema."""
    if isinstance(part, list):
        for position, item in enumerate(part):
            _check_references(item, [*path, position])
    elif isinstance(part, dict):
        for key, item in part.items():
            is_reference = key in ("$ref", "$dynamicRef") and isinstance(item, str)
            if is_reference and not item.startswith("#"):
                raise SchemaError(
                    _path([*path, key]),
                    f'must be within the schema, such as "#/$defs/item"; is {_shown(item)}',
                )
            _check_references(item, [*path, key])


def _of_schema(error: jsonschema_rs.ValidationError) -> str:
    if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Format) and isinstance(
        error.instance, str
    ):
        return (
            "must be a regular expression without lookaround and backreferences, and not a "
            f"large one; is {_shown(error.instance)}"
        )
    return error.message.partition("\n")[0]


def _fitting(validator: jsonschema_rs.Draft202012Validator, text: str) -> tuple[str | None, object]:
    """Return the JSON of an answer that fits, or None and the value that does not; raises
    ValueError for a text that is no JSON where only that would do."""
    problem: ValueError | None = None
    value: object = None
    is_structure = False
    for candidate in _candidates(text):
        try:
            value = _parsed(candidate, ANSWER_LEVELS_MAX)
        except ValueError as error:
            problem = problem or error
            continue
        problem = None
        if validator.is_valid(value):
            return candidate.strip(), value
        is_structure = candidate is text and isinstance(value, dict | list)
        break
    if not is_structure and validator.is_valid(text):  # a text where a text is asked for
        return json.dumps(text, ensure_ascii=False), text
    if problem is not None:
        raise problem
    return None, value


def _candidates(text: str) -> Iterator[str]:
    """Yield what may be the JSON in a text: the whole, the last fence, the outermost brackets."""
    yield text
    fenced = _FENCED.findall(text)
    if fenced:
        yield fenced[-1]
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    end = max(text.rfind("}"), text.rfind("]"))
    if starts and end > min(starts):
        yield text[min(starts) : end + 1]


def _parsed(text: str, levels_max: int) -> Any:
    """Read JSON; raises ValueError that says what is wrong."""
    try:
        value: Any = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_short_enough
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is no JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise ValueError(f"is nested deeper than {levels_max} levels") from None
    if "\\" in text and not _is_text(value):
        raise ValueError("is no JSON: it has half of a surrogate pair")
    level: list[Any] = [value]
    for _ in range(levels_max + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return value
        level = [
            part for item in level for part in (item.values() if isinstance(item, dict) else item)
        ]
    raise ValueError(f"is nested deeper than {levels_max} levels")


def _is_text(value: object) -> bool:
    """Tell whether all strings can be written as UTF-8; `\\ud800` in JSON makes one that cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"is no JSON: {_shown(text)} is no number, or not one of a size to work with")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _short_enough(text: str) -> int:
    return int(text) if len(text) <= _DIGITS_MAX else _no_number(text)


def _errors(validator: jsonschema_rs.Draft202012Validator, value: object) -> list[str]:
    """Return what is wrong, a line a path."""
    lines: dict[str, None] = {}
    for error in validator.iter_errors(value):
        for line in _lines(error, [], _BRANCH_LEVELS_MAX):
            lines[line[:ERROR_CHARACTERS_MAX]] = None
            if len(lines) == ERRORS_MAX:
                return list(lines)
    return list(lines)


def _lines(
    error: jsonschema_rs.ValidationError, above: list[str | int], levels: int
) -> Iterator[str]:
    """Yield an error in words; of alternatives, what is wrong with the one that fits best."""
    kinds = jsonschema_rs.ValidationErrorKind
    if isinstance(error.kind, kinds.AnyOf | kinds.OneOfNotValid) and levels:
        branches = [branch for branch in error.kind.context if branch]
        if branches:
            for inner in min(branches, key=_distance):
                yield from _lines(inner, above, levels - 1)
            return
    yield f"{_path([*above, *error.instance_path])}: {_words(error)}"


def _distance(branch: list[jsonschema_rs.ValidationError]) -> tuple[bool, int]:
    """Order alternatives: one of another type is farther than one with a wrong member."""
    at = min(len(error.instance_path) for error in branch)
    kinds = jsonschema_rs.ValidationErrorKind
    is_other = any(
        isinstance(error.kind, kinds.Type | kinds.Constant) and len(error.instance_path) == at
        for error in branch
    )
    return is_other, len(branch)


def _words(error: jsonschema_rs.ValidationError) -> str:
    kind, kinds = error.kind, jsonschema_rs.ValidationErrorKind
    shown = _shown(error.instance)
    match kind:
        case kinds.Type():
            allowed = " or ".join(_TYPES.get(name, name) for name in kind.types)
            return f"must be {allowed}, is {shown}"
        case kinds.Required():
            return f"must have {_shown(kind.property)}"
        case kinds.AdditionalProperties():
            return f"must not have {', '.join(map(_shown, kind.unexpected[:5]))}"
        case kinds.Enum():
            return f"must be one of {', '.join(map(_shown, kind.options[:20]))}, is {shown}"
        case kinds.Constant():
            return f"must be {_shown(kind.expected_value)}, is {shown}"
        case kinds.Pattern():
            return f"must match {_shown(kind.pattern)}, is {shown}"
        case kinds.Format():
            return f"must be a {kind.format}, is {shown}"
        case kinds.FalseSchema() if error.schema_path[-1:] == ["additionalProperties"]:
            return f"must have no other members, has one that is {shown}"
        case kinds.FalseSchema():
            return f"must not be there, is {shown}"
    return error.message.partition("\n")[0]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "..."


def _path(parts: list[str | int]) -> str:
    """Return a place as JSONPath."""
    path = "$"
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_NAME.fullmatch(part):
            path += f".{part}"
        else:
            path += f"[{part!r}]"
        if len(path) > _PATH_CHARACTERS:
            return path[:_PATH_CHARACTERS] + "..."
    return path


if __name__ == "__main__":
    main()
