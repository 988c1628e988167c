"""Explicit scripts: replies written down beforehand and served as they are.

A policy decides what to say from the request; a script does not look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fathom_demo.scripted_model.openai_wire import ChatRequest, Reply

Policy = Callable[[ChatRequest], Reply]
"""What answers for a model. It may raise ScriptEndedError."""

MODES = ("once", "cycle", "turn")


class ScriptError(ValueError):
    """A script that cannot be served; the text says what is wrong."""


class ScriptEndedError(LookupError):
    """A request came after the script's last reply."""


class Script:
    """Replies in their written order.

    `once` serves each reply one time, `cycle` starts over after the last, and `turn` serves
    reply n to a conversation with n replies in it already, which suits many at once.
    """

    def __init__(self, replies: Sequence[str | Reply], mode: str = "once") -> None:
        """Raise ScriptError for an unknown mode or no replies."""
        if mode not in MODES:
            raise ScriptError(f"mode: {mode!r} is none of {', '.join(MODES)}")
        if not replies:
            raise ScriptError("replies: must not be empty")
        self._replies = [Reply(each) if isinstance(each, str) else each for each in replies]
        self._mode = mode
        self._served = 0

    def __call__(self, request: ChatRequest) -> Reply:
        """Return the reply that is next for this request."""
        position = self._served
        self._served += 1
        if self._mode == "cycle":
            position %= len(self._replies)
        elif self._mode == "turn":
            position = sum(message.role == "assistant" for message in request.messages)
        if position >= len(self._replies):
            raise ScriptEndedError(f"the script has {len(self._replies)} replies and no more")
        return self._replies[position]


def scripts_from_json(value: Any, root_model: str) -> dict[str, Policy]:
    """Return the scripts of a script file by the model they answer for.

    The file holds a list of replies for the root model, or an object from model names to such
    a list or to `{"mode": ..., "replies": [...]}`. A reply is a text or an object with the
    fields of Reply. Raises ScriptError.
    """
    if isinstance(value, list):
        value = {root_model: value}
    if not isinstance(value, Mapping) or not value:
        raise ScriptError("a script is a list of replies or an object from models to scripts")
    return {model: _script(model, written) for model, written in value.items()}


def _script(model: str, written: Any) -> Script:
    if isinstance(written, list):
        written = {"replies": written}
    if not isinstance(written, Mapping) or not isinstance(written.get("replies"), list):
        raise ScriptError(f"{model}: must be a list of replies, or an object that has `replies`")
    try:
        replies = [each if isinstance(each, str) else Reply(**each) for each in written["replies"]]
    except TypeError as error:
        raise ScriptError(f"{model}: {error}") from error
    return Script(replies, written.get("mode", "once"))
