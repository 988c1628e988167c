"""`call_tool`: functions outside of the session that its run's profile offers.

What may be called, and with which arguments, is decided outside; here is only how to ask for it.
"""

import json
from typing import Any

from .questions import Question, ask

_REFUSED = "HOST_TOOL_REFUSED"


class HostToolError(RuntimeError):
    """A host tool gave no result; `reason` is a word for why."""

    __module__ = "__main__"

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class HostToolRefusedError(HostToolError):
    """The run may not call the tool, or not again."""

    __module__ = "__main__"


def call_tool(name: str, /, **arguments: Any) -> Any:
    """Call a function that the run's profile offers, and return its result, a JSON value.

    Arguments are JSON values, by name. Raises HostToolError where there is no result, and
    HostToolRefusedError, which is one, where calling again is of no use.

        call_tool("lookup_ticket", number=4711)
    """
    return ask(question(name, **arguments))


def question(name: str, /, **arguments: Any) -> Question:
    """Return what call_tool asks when it is called like this; raises what it raises for that."""
    if not isinstance(name, str):
        raise TypeError(f"a tool's name is a str, not {type(name).__name__}")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    call = {"name": str(name), "arguments": text}
    request = {"call": "host_tools", "calls": [call], "is_batch": False}

    def give(outcomes: list[dict[str, Any]]) -> Any:
        outcome = outcomes[0]
        if "text" in outcome:
            return json.loads(outcome["text"])
        reason = outcome["reason"]
        kind = HostToolRefusedError if reason == _REFUSED else HostToolError
        raise kind(outcome["message"], reason)

    return Question(request, give, items="calls", characters=len(text))
