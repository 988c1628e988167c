"""`help()` inside the guest: short enough for a model to read, with no pager."""

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

_CHARACTERS_MAX = 6_000
_MEMBERS_MAX = 60
_OURS = "fathom_guest"
_NOTE = """
The data is in `context`; variables, functions and imports stay from cell to cell. There are no
files, no network, no threads and no processes. help(name) tells more of one name.
"""


class Help:
    """The builtin `help`."""

    def __init__(self, namespace: Mapping[str, Any], provided: Mapping[str, Any]) -> None:
        """Take the cells' namespace, and the names in it that are provided."""
        self._namespace = namespace
        self._provided = provided

    def __repr__(self) -> str:
        return "help() lists what is provided; help(name) tells more of it"

    def __call__(self, *topics: Any) -> None:
        """Print what there is to know: of everything that is provided, or of the topics."""
        text = "\n".join(map(self._of_topic, topics)) if topics else self._overview()
        if len(text) > _CHARACTERS_MAX:
            text = f"{text[:_CHARACTERS_MAX]}\n[{len(text) - _CHARACTERS_MAX:,} characters more]"
        print(text)

    def _overview(self) -> str:
        lines = [f"{name}{_signature(v)}\n    {_summary(v)}" for name, v in self._ours().items()]
        return "\n".join(lines) + "\n" + _NOTE.rstrip()

    def _ours(self) -> dict[str, Any]:
        others = {
            name: value
            for name, value in self._namespace.items()
            if str(getattr(value, "__module__", "")).startswith(_OURS)
            and type(value).__name__.startswith("Lazy")
        }
        return {**self._provided, **others}

    def _of_topic(self, topic: Any) -> str:
        for name, value in self._ours().items():
            if topic is value or (type(topic) is str and topic.strip("() ") == name):
                return f"{name}{_signature(value)}\n\n{inspect.getdoc(value) or ''}"
        if type(topic) is str and topic in self._namespace:
            topic = self._namespace[topic]
        if isinstance(topic, (type, types.ModuleType)):
            return _of_members(topic)
        if callable(topic):
            name = getattr(topic, "__qualname__", type(topic).__name__)
            return f"{name}{_signature(topic)}\n\n{inspect.getdoc(topic) or 'not documented'}"
        return _of_members(type(topic))


def _of_members(owner: type | types.ModuleType) -> str:
    names = [name for name in dir(owner) if not name.startswith("_")]
    lines = [f"{owner!r}\n\n{inspect.getdoc(owner) or 'not documented'}\n"]
    for name in names[:_MEMBERS_MAX]:
        member = inspect.getattr_static(owner, name, None)
        lines.append(f"  .{name}  {_summary(member) if callable(member) else ''}".rstrip())
    if len(names) > _MEMBERS_MAX:
        lines.append(f"  and {len(names) - _MEMBERS_MAX} more")
    return "\n".join(lines)


def _signature(value: Any) -> str:
    if not isinstance(value, Callable) or isinstance(value, type):  # type: ignore[arg-type]
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _summary(value: Any) -> str:
    lines = (inspect.getdoc(value) or "").splitlines()
    return lines[0] if lines else ""
