"""`FINAL`, `FINAL_VAR` and `SHOW_VARS`: how a cell gives the run's answer and looks around.

Giving an answer does not end the cell; the last one given counts.
"""

import json
import types
from typing import Any

from . import host
from .child_runs import ChildAnswer
from .citations import Citations
from .lazy_documents import LazyDocuments
from .lazy_json import LazyItems, LazyMapping
from .lazy_lines import LazyLines
from .lazy_text import LazyText
from .sub_calls import Answer, AnswerList, FailedQuery

VALUE_BYTES_MAX = 1 << 20
_PREVIEW_CHARACTERS = 200
_PREVIEW_ITEMS = 20
_NO_ANSWERS = (FailedQuery, LazyText, LazyLines, LazyDocuments, LazyItems, LazyMapping)
"""What is only a sign for something: its repr as the answer would say nothing."""
_SHAPED = ("numpy", "pandas", "scipy")
"""Packages whose values have a shape rather than a length."""


class Answers:
    """The answer given by the running cell, over the namespace that the cells share."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self.citations = Citations(namespace)
        """What the cells have cited."""
        self.provided: dict[str, Any] = {}
        """Names that are not the user's own variables."""
        self.given: dict[str, Any] | None = None
        """The last answer of the cell: text, is_json, variable, confidence, citations."""

    def final(self, value: Any, *, confidence: Any = None) -> None:
        """Give `value` as the final answer: a str as it is, anything else as JSON or repr.

        The cell goes on; the last answer given counts. `confidence`, 0 to 1, says how sure you
        are.

            FINAL("Maria Sanchez signed it, on 4 May 2021.", confidence=0.9)
        """
        self._give(value, "", confidence)

    def final_var(self, name: Any, *, confidence: Any = None) -> None:
        """Give a variable's value as the final answer; takes its name, or the value itself.

        report = "\\n".join(findings)
        FINAL_VAR("report")
        """
        if issubclass(type(name), str):
            key = name.strip().strip("'\"")
            variables = self.variables()
            if key in variables:
                self._give(variables[key], key, confidence)
                return
            if key.isidentifier() and not any(value is name for value in variables.values()):
                raise NameError(
                    f"FINAL_VAR: there is no variable {key!r}; "
                    f"variables: {', '.join(variables) or 'none'}"
                )
        self._give(name, "", confidence)

    def show_vars(self) -> dict[str, str]:
        """Return your variables, each with its type and size.

        SHOW_VARS()  # {"context": "str, 12,345 characters", "rows": "list, 40 items"}
        """
        return {name: outline(value) for name, value in self.variables().items()}

    def variables(self) -> dict[str, Any]:
        """Return the variables that cells and contexts made, in the order of their making."""
        return {
            name: value
            for name, value in self._namespace.items()
            if isinstance(name, str)
            and not name.startswith("_")
            and not issubclass(type(value), types.ModuleType)  # isinstance asks the value
            and self.provided.get(name, _MISSING) is not value
        }

    def described(self, count_max: int) -> list[dict[str, Any]]:
        """Describe the first variables: name, type, length where there is one, preview."""
        return [
            {
                "name": name[:256],
                "type": type_name(value)[:256],
                "length": _length(value),
                "preview": preview(value),
            }
            for name, value in list(self.variables().items())[:count_max]
        ]

    def _give(self, value: Any, variable: str, confidence: Any) -> None:
        sureness = _sureness(confidence)
        text, is_json = rendered(value)
        size_bytes = len(str.encode(text, "utf-8", "replace"))
        bytes_max = min(VALUE_BYTES_MAX, host.value_bytes_max())
        if size_bytes > bytes_max:
            raise ValueError(
                f"an answer has at most {bytes_max:,} bytes, this one has {size_bytes:,}"
            )
        self.given = {
            "text": text,
            "is_json": is_json,
            "variable": variable[:256],
            "confidence": sureness,
            "citations": self.citations.in_answer(text),
        }


_MISSING = object()
_NAME_OF_CLASS = type.__dict__["__name__"]


def _sureness(confidence: Any) -> float | None:
    """Return a confidence as a plain number; None where none is given."""
    if confidence is None:
        return None
    value = float(confidence)
    if not 0 <= value <= 1:
        raise ValueError(f"confidence must be 0 to 1, not {value}")
    return value


def rendered(value: Any) -> tuple[str, bool]:
    """Return a value as the text of an answer, and whether that text is JSON.

    JSON only where it reads back equal; else repr. Raises TypeError for a failed sub-call, and
    for what is lazy.
    """
    if type(value) is LazyText:  # which json would take for a str
        raise TypeError(f"{value!r} is no answer")
    if issubclass(type(value), str):
        return value, False
    failed: list[Any] = []

    def refuse(item: Any) -> None:
        if isinstance(item, _NO_ANSWERS):
            failed.append(item)
        raise TypeError("not JSON")

    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=refuse)
        is_same = bool(json.loads(text) == value)
    except (TypeError, ValueError, RecursionError):
        if failed:
            raise TypeError(f"{failed[0]!r} is no answer") from None
        return repr(value), False
    return (text, True) if is_same else (repr(value), False)


def outline(value: Any) -> str:
    """Return a value's type and size in a few words; never fails."""
    name = type_name(value)
    try:
        size = _size(value)
    except BaseException:  # whatever a class of the cell's own makes of it
        size = ""
    return f"{name}, {size}" if size else name


def _size(value: Any) -> str:
    if str(type(value).__module__).partition(".")[0] in _SHAPED:
        return " x ".join(f"{int(size):,}" for size in value.shape)
    length = _length(value)
    if length is None:
        return ""
    if isinstance(value, str) or type(value) is LazyText:
        return f"{length:,} characters"
    return f"{length:,} {'bytes' if isinstance(value, (bytes, bytearray)) else 'items'}"


def type_name(value: Any) -> str:
    """Return the name of a value's class, whatever its metaclass would say.

    What sub-models answered is as good as any str, and is called one.
    """
    kind = type(value)
    if kind is Answer or kind is ChildAnswer:  # `in` would ask its metaclass
        return "str"
    if kind is AnswerList:
        return "list"
    return str(_NAME_OF_CLASS.__get__(kind))


def preview(value: Any) -> str:
    """Return the start of a value's repr without making the whole of a large one."""
    try:
        if isinstance(value, (str, bytes)):
            text = repr(value[:_PREVIEW_CHARACTERS])
        elif isinstance(value, (dict, list, tuple, set, frozenset)) and len(value) > _PREVIEW_ITEMS:
            text = f"<{type_name(value)} of {len(value)}>"
        else:
            text = repr(value)
        return str.__getitem__(text, slice(_PREVIEW_CHARACTERS))
    except BaseException as error:  # a broken __repr__ is the cell's own affair
        text = f"<{type_name(value)}, whose repr raises {type_name(error)}>"
    return text[:_PREVIEW_CHARACTERS]


def _length(value: Any) -> int | None:
    if type(value) is LazyText:
        return value.characters
    try:
        return None if isinstance(value, FailedQuery) else len(value)
    except BaseException:  # no length, or a broken __len__
        return None
