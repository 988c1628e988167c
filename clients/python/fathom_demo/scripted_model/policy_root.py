"""The root model's policy: written rules in the place of a language model.

It looks, searches or splits, asks the sub-model with the data in the prompt, aggregates and
answers. It knows the conversation it is sent and nothing else. Its replies are files of
`replies/`, filled with values; each cell names its step, which is how the next turn knows it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

from fathom_demo.scripted_model.demands import Demands, find_demands
from fathom_demo.scripted_model.openai_wire import ChatRequest, Message, Reply
from fathom_demo.scripted_model.policy_sub import SubPolicy
from fathom_demo.scripted_model.question import Kind, Question, find_question
from fathom_demo.scripted_model.schema_answers import Place, value_in_form
from fathom_demo.scripted_model.words import trunk_of

_REPL = re.compile(r"\brepl\b", re.IGNORECASE)
_STEP = re.compile(r"^# step: (\w+)", re.MULTILINE)
_ERROR_LINE = re.compile(r"^\s*(\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.MULTILINE)
_ANSWER = re.compile(r"^answer: (.+?)(?=\n\s*\n|\n```|\n</|\Z)", re.MULTILINE | re.DOTALL)
_CITED = re.compile(r"^cited (\{.*\})$", re.MULTILINE)
_SURE = re.compile(r"^sure: (\d(?:\.\d+)?)$", re.MULTILINE)
_FINAL_DEMAND = re.compile(
    r"\bno (?:more|further) (?:code|cells|turns)\b"
    r"|\b(?:final|best|answer)\b[^.\n]{0,60}\b(?:now|immediately)\b",
    re.IGNORECASE,
)
"""The orchestrator's last line when it wants an answer and runs no more cells."""
_LAST_TURN = re.compile(r"\b(?:turn is (?:your|the) last|last turn)\b", re.IGNORECASE)
_SESSION_LOST = re.compile(r"\bvariables\b[^.\n]*\bare gone\b", re.IGNORECASE)
_OUTPUT_END = "\n</output>"
_ATTEMPTS_MAX = 2
_SEEN_CHARACTERS_MAX = 1500

_STEPS = {
    Kind.COUNT: ("inspect", "extract", "classify", "finish"),
    Kind.SEARCH: ("inspect", "gather", "ask", "finish"),
    Kind.DIGEST: ("inspect", "gather", "digest", "finish"),
}
_STEPS_OF_EACH = ("inspect", "delegate", "finish")
_DONE_MARKS = {
    "inspect": "the context is a ",
    "extract": "records found: ",
    "classify": "answer: ",
    "gather": "passages kept: ",
    "ask": "answer: ",
    "digest": "answer: ",
    "delegate": "answer: ",
    "check": "checked: ",
    "finish": "",
}
"""What the output of each step says when it has come to its end."""
_ANSWERING = ("classify", "ask", "digest", "delegate")
"""Steps after which the variable `answer` holds an answer."""

_PASSAGES = {Kind.SEARCH: (1200, 8), Kind.DIGEST: (2400, 16)}
"""Characters of a passage, and how many passages are kept."""
_HITS_MAX = 5000
"""Places after which a word counts as too common to tell anything."""
_BATCH_RECORDS = 40
_CHILDREN_MAX = 6
_SURE_WITHOUT_A_WORD = 0.3


class RootPolicy:
    """Answers as a root model that writes Python cells, by rules.

    Where nobody speaks of a REPL it answers like the sub-model, from the prompt's text.
    """

    description = "A written policy in the place of a root model. Not a language model."

    def __init__(self) -> None:
        self._plain = SubPolicy()
        folder = resources.files(__package__).joinpath("replies")
        self._templates = {
            step: Template(folder.joinpath(f"{step}.md").read_text(encoding="utf-8"))
            for step in {*_DONE_MARKS, "nothing_found", "give_up", "stop"}
        }

    def __call__(self, request: ChatRequest) -> Reply:
        """Return the next step's cells, or prose when an answer is demanded at once."""
        if not any(_REPL.search(message.content) for message in request.messages):
            return self._plain(request)
        task = _Task.of(request.messages)
        newest = request.messages[-1].content
        if request.response_schema is not None or _FINAL_DEMAND.search(_last_line(newest)):
            return Reply(_spoken_answer(task.question, request.messages))
        reply = self._next_step(task)
        if _LAST_TURN.search(newest):
            return self._ended(reply, task)
        return reply

    def _next_step(self, task: _Task) -> Reply:
        taken, question = task.taken, task.question
        if not taken or _SESSION_LOST.search(taken[-1].output):
            return self._step("inspect", task)
        step, output = taken[-1].step, taken[-1].output
        if task.demands.is_surer_answer_asked and all(each.step != "check" for each in taken):
            return self._step("check", task)
        if _DONE_MARKS[step] not in output:
            return self._after_failure(task)
        if step in _ANSWERING and f"{_DONE_MARKS[step]}NOT FOUND" in output:
            return self._after_nothing(step, task)
        planned: Sequence[str] = _STEPS[question.kind]
        if question.of_each and task.demands.can_delegate:
            planned = _STEPS_OF_EACH
        after = planned.index(step) + 1 if step in planned else len(planned)
        return self._step(planned[min(after, len(planned) - 1)], task)

    def _ended(self, reply: Reply, task: _Task) -> Reply:
        """Make the reply of the last turn end the run, with an answer or with what was seen."""
        steps = _STEP.findall(reply.content)
        if "finish" in steps:
            return reply
        if steps and steps[-1] in _ANSWERING and task.demands.schema is None:
            return Reply(reply.content + "\n" + self._step("finish", task).content)
        return self._stop(task)

    def _after_failure(self, task: _Task) -> Reply:
        """Run a step that broke off a second time with less to do, then say what happened."""
        step, output = task.taken[-1].step, task.taken[-1].output
        if sum(each.step == step for each in task.taken) < _ATTEMPTS_MAX:
            return self._step(step, task, effort=0.25)
        if task.demands.schema is not None:
            return self._stop(task)
        errors = _ERROR_LINE.findall(output)
        reason = errors[-1].strip() if errors else "its output did not come to an end"
        return self._fill("give_up", {"STEP": step, "REASON": reason[:200]})

    def _after_nothing(self, step: str, task: _Task) -> Reply:
        """Look wider once after a search that found nothing, then say so."""
        if step == "ask":
            return self._step("digest", task)
        if task.demands.schema is not None:
            looked_up = ", ".join(task.question.keywords)
            return self._stop(task, f"I found no answer in the context. I looked up {looked_up}.")
        return self._fill("nothing_found", {"KEYWORDS": list(task.question.keywords)})

    def _stop(self, task: _Task, spoken: str = "") -> Reply:
        """End with what is to be said; with what was seen where that is empty."""
        spoken = spoken or _spoken_answer(task.question, task.messages)
        return self._fill("stop", {}, CALL=_final_call(spoken, task))

    def _step(self, step: str, task: _Task, effort: float = 1.0) -> Reply:
        question = task.question
        width, most = _PASSAGES.get(question.kind, (0, 0))
        return self._fill(
            step,
            {
                "QUESTION": question.text,
                "KEYWORDS": [trunk_of(word) for word in question.keywords],
                "MARKER": question.marker,
                "CATEGORIES": list(question.categories),
                "BATCH_RECORDS": max(1, int(_BATCH_RECORDS * effort)),
                "PASSAGE_CHARACTERS": width,
                "PASSAGES_MAX": max(1, int(most * effort)),
                "HITS_MAX": int(_HITS_MAX * effort),
                "TASK": question.of_each,
                "PARTS_MAX": max(1, int(_CHILDREN_MAX * effort)),
            },
            CALL=_final_call("", task) if step == "finish" else "",
        )

    def _fill(self, name: str, values: Mapping[str, object], **code: str) -> Reply:
        """Return a reply file with its `$NAME`s replaced by Python literals, or by code."""
        literals = {key: ascii(value) for key, value in values.items()}
        return Reply(self._templates[name].substitute(literals | code))


@dataclass(frozen=True)
class _Taken:
    """A step that a former reply took, with all that came back until the next one."""

    step: str
    """Its name."""
    output: str
    """The messages that came back."""


@dataclass(frozen=True)
class _Task:
    """A conversation as the rules see it."""

    messages: Sequence[Message]
    """All of it."""
    question: Question
    """What is asked."""
    demands: Demands
    """What is demanded besides."""
    taken: Sequence[_Taken]
    """What was done so far."""

    @classmethod
    def of(cls, messages: Sequence[Message]) -> _Task:
        """Read a conversation."""
        question, demands = find_question(messages), find_demands(messages)
        return cls(messages, question, demands, _steps_taken(messages))

    @property
    def printed(self) -> str:
        """What cells have printed, and all that was said around it."""
        return "\n".join(each.output for each in self.taken)


def _final_call(text: str, task: _Task) -> str:
    """Return the call that gives an answer, of the form that is demanded: `text`, or what is in the
    variable `answer` where that is empty."""
    given, demands = ("FINAL", ascii(text)) if text else ("FINAL_VAR", '"answer"'), task.demands
    if demands.schema is not None:
        said = text or _spoken_answer(task.question, task.messages)
        value = value_in_form(said, demands.schema, _places_in(task.printed))
        given = ("FINAL", ascii(value))
    function, value_code = given
    sure = f", confidence={_sureness(task.printed):g}" if demands.is_confidence_asked else ""
    return f"{function}({value_code}{sure})"


def _places_in(printed: str) -> list[Place]:
    """Return the places that cells have cited, each once."""
    places: dict[str, Any] = {}
    for found in _CITED.findall(printed):
        with contextlib.suppress(ValueError):  # A line that was cut where output is long.
            places[found] = json.loads(found)
    return list(places.values())


def _sureness(printed: str) -> float:
    stated = _SURE.findall(printed)
    return float(stated[-1]) if stated else _SURE_WITHOUT_A_WORD


def _steps_taken(messages: Sequence[Message]) -> list[_Taken]:
    taken: list[_Taken] = []
    for message in messages:
        if message.role == "assistant":
            steps = [step for step in _STEP.findall(message.content) if step in _DONE_MARKS]
            taken += [_Taken(step, "") for step in steps[-1:]]
        elif taken:
            taken[-1] = _Taken(taken[-1].step, f"{taken[-1].output}\n{message.content}")
    return taken


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _spoken_answer(question: Question, messages: Sequence[Message]) -> str:
    """Return prose that tells the newest answer in the history, or what was seen."""
    outputs = [message.content for message in messages if message.role == "user"]
    for output in reversed(outputs):
        found = _ANSWER.search(output)
        if found and not found.group(1).startswith("NOT FOUND"):
            return found.group(1)[:_SEEN_CHARACTERS_MAX].strip()
    seen = next((each for each in reversed(outputs) if _passages_in(each)), "")
    if seen:
        return (
            f"I had to stop before I could check an answer to: {question.text}\n"
            f"What I had gathered until then:\n{_passages_in(seen)}"
        )
    return f"I had to stop before I found anything that answers: {question.text}"


def _passages_in(output: str) -> str:
    for mark in (_DONE_MARKS["gather"], _DONE_MARKS["extract"]):
        _, found, rest = output.partition(mark)
        if found:
            # What is said around a cell's output is for us, and not for the asker.
            printed = rest.partition(_OUTPUT_END)[0]
            return (mark + printed)[:_SEEN_CHARACTERS_MAX].strip()
    return ""
