"""A conversation between the written policies, with cells run in this process.

It stands in for the services: no limits, no wire, and outputs go back whole.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fathom_demo.scripted_model.openai_wire import ChatRequest, Message
from fathom_demo.scripted_model.policy_root import RootPolicy
from fathom_demo.scripted_model.policy_sub import SubPolicy

TURNS_MAX = 8


@dataclass
class Talk:
    """One question asked of the policies, and what came of it."""

    question: str
    context: object
    fail_sub_call: Callable[[int], bool] = lambda _: False
    """Which sub-calls, counted from 1, fail inside a batch."""
    demands: str = ""
    """What the orchestrator's message says besides the question and the data."""
    confidence_min: float = 0.0
    """Below it an answer is kept and not taken."""
    answer: object = None
    replies: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    sub_prompts: list[str] = field(default_factory=list)
    confidence: float | None = None
    children: list[tuple[str, str]] = field(default_factory=list)
    cited: list[tuple[str, int, int]] = field(default_factory=list)

    def run(self) -> Talk:
        """Talk until an answer is given; the answer stays None when none comes."""
        namespace = self._namespace()
        asked = f"Question: {self.question}\n\nThe context is in the REPL.{self.demands}"
        messages = [
            Message("system", "Write ```repl cells; `context` holds the data."),
            Message("user", asked),
        ]
        root = RootPolicy()
        while self.answer is None and len(self.replies) < TURNS_MAX:
            reply = root(ChatRequest("scripted-root", tuple(messages))).content
            self.replies.append(reply)
            self.outputs.append("\n".join(_run(cell, namespace) for cell in _cells(reply)))
            messages += [Message("assistant", reply), Message("user", self.outputs[-1])]
        return self

    def _namespace(self) -> dict[str, Any]:
        sub = SubPolicy()

        def query(prompt: str) -> str:
            self.sub_prompts.append(prompt)
            return sub(ChatRequest("scripted-sub", (Message("user", prompt),))).content

        def query_batched(prompts: list[str]) -> list[object]:
            replies = [query(prompt) for prompt in prompts]
            first = len(self.sub_prompts) - len(prompts) + 1
            return [
                FailedCall() if self.fail_sub_call(number) else reply
                for number, reply in enumerate(replies, first)
            ]

        def final(value: object, *, confidence: float | None = None) -> None:
            self.confidence = confidence
            if (confidence or 0.0) >= self.confidence_min:
                self.answer = value
            else:
                print("Your answer is kept, and not yet taken: it was to have more confidence.")

        def run_children(prompt: str, names: list[str]) -> list[object]:
            """A child answers with the whole of its document."""
            self.children += [(prompt, name) for name in names]
            return [self.context[name] for name in names]  # type: ignore[index]

        namespace: dict[str, Any] = {
            "context": self.context,
            "llm_query": query,
            "llm_query_batched": query_batched,
            "cite": lambda *place: self.cited.append(place),
            "FINAL": final,
            "FINAL_VAR": lambda name, **options: final(namespace[name], **options),
            "part": lambda *, document: document,
            "rlm_query_batched": run_children,
        }
        return namespace


class FailedCall:
    """What a batch holds in place of a reply that did not come."""


def _cells(reply: str) -> list[str]:
    return re.findall(r"^```repl\n(.*?)^```", reply, re.DOTALL | re.MULTILINE)


def _run(cell: str, namespace: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(ast.parse(cell), "cell", "exec"), namespace)
        except Exception:  # the model is shown what its code raised, whatever it is
            traceback.print_exc(file=out)
    return out.getvalue()
