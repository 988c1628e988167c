"""`FINAL`, `FINAL_VAR` and `SHOW_VARS`: how a cell gives the run's answer and looks around.

Giving an answer does not end the cell; the last one given counts.
"""

import json
import types
from typing import Any

from .sub_calls import FailedQuery

VALUE_BYTES_MAX = 1 << 20
_PREVIEW_CHARACTERS = 200
_PREVIEW_ITEMS = 20


class Answers:
    """The answer given by the running cell, over the namespace that the cells share."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self.provided: dict[str, Any] = {}
        """Names that are not the user's own variables."""
        self.given: dict[str, Any] | None = None
        """The last answer of the cell: text, is_json, variable."""

    def final(self, value: Any) -> None:
        """Give `value` as the run's answer: a str as it is, anything else as JSON or repr."""
        self._give(value, "")

    def final_var(self, name: Any) -> None:
        """Give a variable's value as the run's answer; takes its name or the value itself."""
        if isinstance(name, str):
            key = name.strip().strip("'\"")
            variables = self.variables()
            if key in variables:
                self._give(variables[key], key)
                return
            if key.isidentifier() and not any(value is name for value in variables.values()):
                raise NameError(
                    f"FINAL_VAR: there is no variable {key!r}; "
                    f"variables: {', '.join(variables) or 'none'}"
                )
        self._give(name, "")

    def show_vars(self) -> dict[str, str]:
        """Return the names of your variables, each with its type."""
        return {name: type(value).__name__ for name, value in self.variables().items()}

    def variables(self) -> dict[str, Any]:
        """Return the variables that cells and contexts made, in the order of their making."""
        return {
            name: value
            for name, value in self._namespace.items()
            if not name.startswith("_")
            and not isinstance(value, types.ModuleType)
            and self.provided.get(name, _MISSING) is not value
        }

    def described(self, count_max: int) -> list[dict[str, Any]]:
        """Describe the first variables: name, type, length where there is one, preview."""
        return [
            {
                "name": name[:256],
                "type": type(value).__name__[:256],
                "length": _length(value),
                "preview": preview(value),
            }
            for name, value in list(self.variables().items())[:count_max]
        ]

    def _give(self, value: Any, variable: str) -> None:
        text, is_json = rendered(value)
        size_bytes = len(str.encode(text, "utf-8", "replace"))
        if size_bytes > VALUE_BYTES_MAX:
            raise ValueError(
                f"an answer has at most {VALUE_BYTES_MAX:,} bytes, this one has {size_bytes:,}"
            )
        self.given = {"text": text, "is_json": is_json, "variable": variable[:256]}


_MISSING = object()


def rendered(value: Any) -> tuple[str, bool]:
    """Return a value as the text of an answer, and whether that text is JSON.

    JSON only where it reads back equal; else repr. Raises TypeError for a failed sub-call.
    """
    if isinstance(value, str):
        return value, False
    failed: list[FailedQuery] = []

    def refuse(item: Any) -> None:
        if isinstance(item, FailedQuery):
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


def preview(value: Any) -> str:
    """Return the start of a value's repr without making the whole of a large one."""
    try:
        if isinstance(value, (str, bytes)):
            text = repr(value[:_PREVIEW_CHARACTERS])
        elif isinstance(value, (dict, list, tuple, set, frozenset)) and len(value) > _PREVIEW_ITEMS:
            text = f"<{type(value).__name__} of {len(value)}>"
        else:
            text = repr(value)
        return str.__getitem__(text, slice(_PREVIEW_CHARACTERS))
    except BaseException as error:  # a broken __repr__ is the cell's own affair
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return text[:_PREVIEW_CHARACTERS]


def _length(value: Any) -> int | None:
    if isinstance(value, FailedQuery):
        return None
    try:
        return len(value)
    except BaseException:  # no length, or a broken __len__
        return None
