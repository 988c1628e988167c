"""The runs that are disturbed: what their models say, and the answers that they must end with.

Each run has sub-calls alone and in batches, variables that go from cell to cell, and draws of
chance and time; each third starts child runs, and each sixth one of these has a child of its own.
Every call has a content that no other call has.
"""

from __future__ import annotations

import ast
import collections
import json
import re
import zlib

from fathom_demo.scripted_model import ChatRequest, Policy, Reply

ROOT_MODEL = "chaos-root"
SUB_MODEL = "chaos-sub"
_MARK = re.compile(r"<<chaos-[0-9a-z.]+>>")
_DRAWN = "drawn"
_TURNS = (
    """import json, random, time
prompts, children = {prompts}, {children}
drawn = [random.random(), random.getrandbits(40), time.time_ns()]
found = llm_query_batched(prompts[:6])
print(drawn)""",
    """found.append(llm_query({drawn_prompt!r} + str(drawn)))
drawn.append(random.random())
found += llm_query_batched(prompts[6:9])
print(len(found))""",
    """if children:
    found += rlm_query_batched(children)
for prompt in prompts[9:]:
    found.append(llm_query(prompt))
drawn.append(sum(range(100_000)))
found[-1]""",
    "FINAL(json.dumps([found, drawn]))",
)
_CHILD_TURNS = (
    """found = llm_query_batched({prompts})
children = {children}
if children:
    found += rlm_query_batched(children)
print(found)""",
    "FINAL('-'.join(found))",
)


class Models:
    """The scripted models' policies, which count what they are asked."""

    def __init__(self) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        """How often each call reached its provider, by what tells it apart."""
        self._contents: dict[str, set[int]] = {}

    @property
    def policies(self) -> dict[str, Policy]:
        """What the scripted model is given."""
        return {ROOT_MODEL: self._root, SUB_MODEL: self._sub}

    @property
    def changed(self) -> list[str]:
        """Calls that came with different contents: code or conversation did not repeat."""
        return sorted(call for call, contents in self._contents.items() if len(contents) > 1)

    def asked_of(self, question: str) -> int:
        """Return how often providers were asked for a run and all below it."""
        stem = mark_in(question).removesuffix(">>")
        return sum(
            count
            for call, count in self.asked.items()
            if mark_in(call).removesuffix(">>").split(".")[0] == stem
        )

    def _root(self, request: ChatRequest) -> Reply:
        text = "\n".join(message.content for message in request.messages)
        mark = mark_in(text)
        turn = sum(message.role == "assistant" for message in request.messages)
        self._note(f"turn {mark} {turn}", text)
        code = [*cells(mark), "FINAL('no cell of mine gave an answer')"]
        return Reply(f"```repl\n{code[min(turn, len(code) - 1)]}\n```")

    def _sub(self, request: ChatRequest) -> Reply:
        prompt = request.messages[-1].content
        call = prompt.partition(_DRAWN)[0] if _DRAWN in prompt else prompt
        self._note(call, prompt)
        return Reply(said(prompt))

    def _note(self, call: str, content: str) -> None:
        self.asked[call] += 1
        self._contents.setdefault(call, set()).add(zlib.crc32(content.encode()))


def question(number: int) -> str:
    """Return the question of a run."""
    return f"What is there to say about <<chaos-{number}>>?"


def mark_in(text: str) -> str:
    """Return the first mark in a text: whose it is."""
    found = _MARK.search(text)
    assert found is not None, text[:2000]
    return found.group()


def said(prompt: str) -> str:
    """Return what the sub-model says to a prompt."""
    return f"{zlib.crc32(prompt.encode()):08x}"


def cells(mark: str) -> list[str]:
    """Return the code of a run's turns."""
    turns = _CHILD_TURNS if "." in mark else _TURNS
    return [
        turn.format(
            prompts=_prompts(mark),
            children=_questions(mark),
            drawn_prompt=f"{mark} {_DRAWN} ",
        )
        for turn in turns
    ]


def wrong(number: int, answer: str, printed: str) -> str:
    """Return what is wrong with a run's answer; empty for the right one. `printed` is the output of
    the run's first cell: what was drawn is known from there."""
    try:
        found, drawn = json.loads(answer)
        first = ast.literal_eval(printed.strip())
    except (ValueError, SyntaxError):
        return f"no answer: {answer[:300]!r} after {printed[:300]!r}"
    if drawn[:3] != first or len(drawn) != 5 or drawn[4] != sum(range(100_000)):
        return f"drawn {drawn} after {first} was printed"
    mark = mark_in(question(number))
    prompts = _prompts(mark)
    prompts[6:6] = [f"{mark} {_DRAWN} {first}"]
    given = [said(prompt) for prompt in prompts]
    right = given[:10] + [_child_answer(child) for child in _marks(mark)] + given[10:]
    return "" if found == right else f"found {found} in place of {right}"


def _child_answer(mark: str) -> str:
    return "-".join([*map(said, _prompts(mark)), *map(_child_answer, _marks(mark))])


def _prompts(mark: str) -> list[str]:
    return [f"sub {mark} {n}" for n in range(3 if "." in mark else 12)]


def _questions(mark: str) -> list[str]:
    return [f"What is there to say about {child}?" for child in _marks(mark)]


def _marks(mark: str) -> list[str]:
    """Return the marks of a run's children."""
    stem = mark.removesuffix(">>")
    number = int(stem.removeprefix("<<chaos-").split(".")[0])
    depth = stem.count(".")
    if depth == 0 and number % 3 == 0:
        return [f"{stem}.a>>", f"{stem}.b>>"]
    return [f"{stem}.c>>"] if number % 6 == 0 and stem.endswith(".a") else []
