"""The scripted models of a storm: the root model plays a run's script, the sub-model gives each
prompt an answer of its own. Both count what they are asked.
"""

from __future__ import annotations

import collections
import json
import zlib

from fathom_demo.scripted_model import ChatRequest, Policy, Reply

from tests.chaos.marks import Mark
from tests.chaos.scripts import DRAWN, SHAPE, said, script_of, typed_number

ROOT_MODEL = "chaos-root"
SUB_MODEL = "chaos-sub"


class Models:
    """The scripted models' policies."""

    def __init__(self) -> None:
        self._asked: collections.Counter[str] = collections.Counter()
        self._contents: dict[str, set[int]] = {}

    @property
    def policies(self) -> dict[str, Policy]:
        """What the scripted model is given."""
        return {ROOT_MODEL: self._root, SUB_MODEL: self._sub}

    @property
    def changed(self) -> list[str]:
        """Calls that came with different contents: code or conversation did not repeat."""
        return sorted(call for call, contents in self._contents.items() if len(contents) > 1)

    def asked_of(self, mark: Mark) -> int:
        """Return how often providers were asked for a run and all below it."""
        return sum(count for call, count in self._asked.items() if Mark.first_in(call).root == mark)

    def _root(self, request: ChatRequest) -> Reply:
        text = "\n".join(message.content for message in request.messages)
        mark = Mark.first_in(text)
        turn = sum(message.role == "assistant" for message in request.messages)
        self._note(f"turn {mark} {turn}", text)
        turns = [*script_of(mark).turns(mark), "FINAL('no cell of mine gave an answer')"]
        return Reply(f"```repl\n{turns[min(turn, len(turns) - 1)]}\n```")

    def _sub(self, request: ChatRequest) -> Reply:
        prompt = request.messages[-1].content
        self._note(prompt.partition(DRAWN)[0], prompt)
        if SHAPE in prompt:
            return Reply(json.dumps({"n": typed_number(Mark.first_in(prompt))}))
        return Reply(said(prompt))

    def _note(self, call: str, content: str) -> None:
        self._asked[call] += 1
        self._contents.setdefault(call, set()).add(zlib.crc32(content.encode()))
