"""JSON Schema for the answers of sub-models: the keywords that schemas are commonly written in, of
draft 2020-12, with every error and its path. Keywords that it does not know how to check are
refused rather than passed over; `format` is not checked.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from .schema_keywords import COMPARED, TYPES, check_keyword, inner_schemas, shown

ERRORS_MAX = 20
_ERROR_CHARACTERS = 300
_SCHEMA_BYTES_MAX = 64 << 10
_FENCED = re.compile(r"^[ \t]*```[\w-]*[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
Errors = Iterator[tuple[str, str]]
"""What is wrong, by path."""


class Schema:
    """A schema that answers are checked against."""

    def __init__(self, schema: Any) -> None:
        """Take a schema as a dict or as JSON text; raises ValueError that names the place for one
        that is wrong, or that has keywords which are not checked here."""
        if isinstance(schema, str):
            try:
                schema = parsed(schema)
            except ValueError as error:
                raise ValueError(f"schema: {error}") from None
        self.text = json.dumps(schema, ensure_ascii=False)
        """The schema as JSON."""
        if len(self.text.encode("utf-8", "replace")) > _SCHEMA_BYTES_MAX:
            raise ValueError(f"schema: at most {_SCHEMA_BYTES_MAX:,} bytes")
        self._root = json.loads(self.text)  # a copy, so that it stays what it is
        self._check(self._root, "$")

    def errors(self, value: Any) -> list[str]:
        """Return what is wrong with a value, a line a path, at most ERRORS_MAX; empty where it
        fits. Raises ValueError for a schema that refers to itself without end."""
        lines: dict[str, None] = {}
        try:
            for path, words in self._found(self._root, value, "$"):
                lines[f"{path}: {words}"[:_ERROR_CHARACTERS]] = None
                if len(lines) == ERRORS_MAX:
                    break
        except RecursionError:
            raise ValueError(
                "schema: refers to itself without end, or is nested too deep"
            ) from None
        return list(lines)

    def _check(self, schema: Any, path: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise ValueError(f"schema: {path} must be a schema, a dict")  # noqa: TRY004  # as all
        for key, value in schema.items():
            check_keyword(key, value, f"{path}.{key}")
            if key == "$ref":
                self._target(value)
            for name, inner in inner_schemas(key, value):
                self._check(inner, f"{path}.{key}{name}")

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError(
                f"schema: $ref must be within the schema, as #/$defs/item; is {shown(reference)}"
            )
        target = self._root
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(part) if isinstance(target, list) else part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ValueError(f"schema: $ref {reference!r} leads nowhere") from None
        return target

    def _found(self, schema: Any, value: Any, path: str) -> Errors:
        """Yield the errors of a value."""
        if schema is True:
            return
        if schema is False:
            yield path, f"must not be there, is {shown(value)}"
            return
        if "$ref" in schema:
            yield from self._found(self._target(schema["$ref"]), value, path)
        yield from _of_value(schema, value, path)
        yield from self._of_alternatives(schema, value, path)
        if isinstance(value, dict):
            yield from self._of_members(schema, value, path)
            yield from self._of_names(schema, value, path)
        if isinstance(value, list):
            yield from self._of_items(schema, value, path)

    def _fits(self, schema: Any, value: Any) -> bool:
        return next(self._found(schema, value, "$"), None) is None

    def _of_alternatives(self, schema: Any, value: Any, path: str) -> Errors:
        for part in schema.get("allOf", ()):
            yield from self._found(part, value, path)
        for key in ("anyOf", "oneOf"):
            branches = [list(self._found(part, value, path)) for part in schema.get(key, ())]
            fitting = sum(not branch for branch in branches)
            if branches and not fitting:
                yield from min(branches, key=lambda found: _distance(found, path))
            elif key == "oneOf" and fitting > 1:
                yield path, f"must fit exactly one alternative, fits {fitting}"
        if "not" in schema and self._fits(schema["not"], value):
            yield path, f"must not fit what is excluded, is {shown(value)}"
        if "if" in schema:
            branch = "then" if self._fits(schema["if"], value) else "else"
            yield from self._found(schema.get(branch, True), value, path)

    def _of_members(self, schema: Any, value: Any, path: str) -> Errors:
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        others = schema.get("additionalProperties", True)
        for name, item in value.items():
            inner = [properties[name]] if name in properties else []
            inner += [part for pattern, part in patterns.items() if re.search(pattern, name)]
            if not inner and others is False:
                yield path, f"must not have {shown(name)}"
                continue
            for part in inner or [others]:
                yield from self._found(part, item, _member(path, name))

    def _of_names(self, schema: Any, value: Any, path: str) -> Errors:
        for name in schema.get("required", ()):
            if name not in value:
                yield path, f"must have {shown(name)}"
        for name in value:
            if not self._fits(schema.get("propertyNames", True), name):
                yield path, f"must not have a member named {shown(name)}"
            for other in schema.get("dependentRequired", {}).get(name, ()):
                if other not in value:
                    yield path, f"must have {shown(other)} beside {shown(name)}"
            yield from self._found(schema.get("dependentSchemas", {}).get(name, True), value, path)

    def _of_items(self, schema: Any, value: Any, path: str) -> Errors:
        first = schema.get("prefixItems", [])
        for number, item in enumerate(value):
            part = first[number] if number < len(first) else schema.get("items", True)
            yield from self._found(part, item, f"{path}[{number}]")
        if schema.get("uniqueItems") and len({_identity(item) for item in value}) < len(value):
            yield path, "must not have an item twice"
        if "contains" in schema:
            count = sum(self._fits(schema["contains"], item) for item in value)
            least, most = schema.get("minContains", 1), schema.get("maxContains", len(value))
            if not least <= count <= most:
                yield path, f"must have {least} to {most} items of a kind, has {count}"


def parsed(text: str) -> Any:
    """Return the JSON in a text, which may stand in a fence or between other words; raises
    ValueError."""
    candidates = [text, *_FENCED.findall(text)[-1:]]
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    end = max(text.rfind("}"), text.rfind("]"))
    if starts and end > min(starts):
        candidates.append(text[min(starts) : end + 1])
    problem = ""
    for candidate in candidates:
        try:
            return json.loads(candidate, parse_constant=_no_number)
        except RecursionError:
            problem = problem or "is nested too deep"
        except ValueError as error:
            problem = problem or f"is no JSON: {error}"
    raise ValueError(problem)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _of_value(schema: dict[str, Any], value: Any, path: str) -> Errors:
    """Yield the errors that only the value itself has."""
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(TYPES[name][1](value) for name in names):
            wanted = " or ".join(TYPES[name][0] for name in names)
            yield path, f"must be {wanted}, is {shown(value)}"
            return  # more about a value of another type would only confuse
    if "const" in schema and _identity(value) != _identity(schema["const"]):
        yield path, f"must be {shown(schema['const'])}, is {shown(value)}"
    if "enum" in schema and _identity(value) not in map(_identity, schema["enum"]):
        options = ", ".join(map(shown, schema["enum"][:ERRORS_MAX]))
        yield path, f"must be one of {options}, is {shown(value)}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield path, f"must match {shown(schema['pattern'])}, is {shown(value)}"
    for key, (about, words, is_well) in COMPARED.items():
        if key not in schema:
            continue
        if TYPES[about][1](value) and not is_well(value, schema[key]):
            yield path, f"must be {words.format(schema[key])}, is {shown(value)}"


def _distance(found: list[tuple[str, str]], path: str) -> tuple[bool, int]:
    """Order alternatives by how far a value is from them: one that is another thing altogether is
    farther than one with wrong members."""
    return any(at == path and words.startswith("must be ") for at, words in found), len(found)


def _identity(value: Any) -> Any:
    """Return what two values have in common that are equal in JSON: 1 is 1.0, and not true."""
    if isinstance(value, list):
        return ("array", *map(_identity, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _identity(item)) for name, item in value.items()))
    return (isinstance(value, bool), value)


def _member(path: str, name: str) -> str:
    return f"{path}.{name}" if name.isidentifier() else f"{path}[{name!r}]"
