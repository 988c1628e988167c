"""What the runs of a storm do, turn by turn; `answers.py` has what they must end with.

Every call has a content that no other call has. What a cell prints are numbers: chance and time are
known from there.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

from tests.chaos.marks import Mark

DRAWN = " drawn "
"""What follows it in a prompt differs from run to run."""
SHAPE = "n of the typed"
"""What is in a prompt whose answer has a schema."""
NOTE = "Little is known of it.\n" * 100
"""The context of most runs."""
BIG = "".join(f"line {number:07d}: much is said, and little is meant\n" for number in range(60_000))
"""A context that sessions have by reference."""
LETTERS = {
    "minutes.txt": "It was agreed that the pumps come later.\n",
    "letter.txt": "Dear all,\nthe pumps arrive in Rostock on the third of May.\nYours\n",
}
"""A context of documents."""
SENTENCE = "the pumps arrive in Rostock on the third of May."
MINUTE = "agreed that the pumps come later"
INVENTED = "nobody has ever written this sentence down"
TYPED = {
    "type": "object",
    "properties": {
        "found": {"type": "array", "items": {"type": "string"}},
        "count": {"type": "integer"},
    },
    "required": ["found", "count"],
}
"""Schema of a typed run's answer."""
PROFILE = "profiles/orders"
"""Of runs that order things."""
TOOL = "place_order"
"""The function by which they do."""
VALUE = "by value " * 20
"""A context that one child run gets by value."""
PART = slice(1_000_000, 1_000_500)
"""Of the big context, what one child run gets of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """What one kind of run does."""

    cells: Sequence[str]
    """The code of its turns; `mark`, `prompts` and `children` are set before."""
    prompts: int
    """How many prompts of its own it has."""
    sub_calls: int
    """How many sub-calls it makes, those of its children not counted."""
    children: str = ""
    """Its child runs, one a letter."""
    tool_calls: int = 0
    """Calls of the operator's tool that it makes, one that is refused beside them."""
    first_turn: int = 1
    """The turn that the first of its cells is for; a fork has turns of another run before."""

    def turns(self, mark: Mark) -> list[str]:
        """Return the code of each turn of the model."""
        children = [child.question for child in mark.children(self.children)]
        names = f"mark, prompts, children = {str(mark)!r}, {mark.prompts(self.prompts)!r}, "
        before = [""] * (self.first_turn - 1)
        return [*before, f"{names}{children!r}\n{self.cells[0]}", *self.cells[1:]]


def said(prompt: str) -> str:
    """Return what the sub-model says to a prompt."""
    return f"{zlib.crc32(prompt.encode()):08x}"


def typed_number(mark: Mark) -> int:
    """Return what the sub-model says where it is asked for a number."""
    return zlib.crc32(str(mark).encode())


def script_of(mark: Mark) -> Script:
    """Return what a run does."""
    if not mark.depth:
        return SCRIPTS[mark.kind]
    return _ENDLESS_CHILD if mark.kind == "cancelled" else _PARENT if mark.path == ".a" else _CHILD


def uploaded_text(mark: Mark) -> str:
    """Return a context that one client alone uploads."""
    return f"{mark} has a context of its own\n" * 30_000


_DRAW = """import json, random, time
drawn = [random.random(), random.getrandbits(40), time.time_ns()]
found = llm_query_batched(prompts[:6])
print(drawn)"""


_CHILD = Script(
    prompts=3,
    sub_calls=3,
    cells=(
        """found = llm_query_batched(prompts)
if children:
    found += rlm_query_batched(children)
print(found)""",
        "FINAL('-'.join([*found, str(len(context))]))",
    ),
)
_PARENT = dataclasses.replace(_CHILD, children="e")
_ENDLESS_CHILD = Script(
    prompts=0,
    sub_calls=0,
    cells=("for number in range(5_000):\n    llm_query(f'sub {mark} {number}')",),
)
SCRIPTS: dict[str, Script] = {
    "draws": Script(
        prompts=12,
        sub_calls=13,
        cells=(
            _DRAW,
            f"""found.append(llm_query(mark + {DRAWN!r} + str(drawn)))
drawn.append(random.random())
found += llm_query_batched(prompts[6:9])
print(drawn)""",
            """for prompt in prompts[9:]:
    found.append(llm_query(prompt))
drawn.append(sum(range(100_000)))""",
            "FINAL(json.dumps([found, drawn]))",
        ),
    ),
    "tree": Script(
        prompts=6,
        sub_calls=6,
        children="abcd",
        cells=(
            _DRAW,
            "found += rlm_query_batched(children[:2])",
            f"""found.append(rlm_query(children[2], part(100, 300)))
found.append(rlm_query(children[3], {VALUE!r}))""",
            "FINAL(json.dumps([found, drawn]))",
        ),
    ),
    "orders": Script(
        prompts=3,
        sub_calls=3,
        tool_calls=3,
        cells=(
            f"""import json
receipts = [{TOOL}(order=f"{{mark}} {{number}}")["receipt"] for number in range(2)]
found = [*receipts]""",
            f"""found += llm_query_batched(prompts)
receipts.append({TOOL}(order=f"{{mark}} 2")["receipt"])
found.append(receipts[-1])
try:
    {TOOL}(order="")
except HostToolError as error:
    found.append(type(error).__name__)""",
            "FINAL(json.dumps([found, listed(receipts)]))",
        ),
    ),
    "talk": Script(
        prompts=6,
        sub_calls=6,
        cells=(_DRAW, "kept = [found, drawn]\nFINAL(json.dumps(kept))"),
    ),
    "talked": Script(
        prompts=4,
        sub_calls=4,
        cells=(
            """kept[0].append(llm_query(prompts[0]))
kept.append([random.random(), time.time_ns()])
print(kept[-1])""",
            "kept[0] += llm_query_batched(prompts[1:])\nFINAL(json.dumps(kept))",
        ),
    ),
    "forked": Script(
        prompts=4,
        sub_calls=4,
        first_turn=2,
        cells=(
            """found += llm_query_batched(prompts)
drawn.append(random.random())
print(drawn)""",
            "FINAL(json.dumps([found, drawn]))",
        ),
    ),
    "typed": Script(
        prompts=5,
        sub_calls=5,
        cells=(
            f"""found = llm_query_batched(prompts[:4])
shape = {{"type": "object", "properties": {{"n": {{"type": "integer"}}}}, "required": ["n"]}}
found.append(str(llm_query(prompts[4] + " {SHAPE}", schema=shape)["n"]))""",
            "FINAL({'found': found})",
            "FINAL({'found': found, 'count': len(found)})",
        ),
    ),
    "cited": Script(
        prompts=4,
        sub_calls=4,
        cells=(
            f"""import json
found = llm_query_batched(prompts)
at = context["letter.txt"].index({SENTENCE!r})
marker = cite("letter.txt", at, at + {len(SENTENCE)})""",
            f"""words = f"It is said {{marker}}. “{MINUTE}”, and “{INVENTED}”."
FINAL([*found, words])""",
        ),
    ),
    "big": Script(
        prompts=5,
        sub_calls=5,
        children="b",
        cells=(
            f"""import json
found = llm_query_batched(prompts[:4])
assert type(context).__name__ == "LazyText"
found.append(llm_query(prompts[4] + " " + context[{PART.start}:{PART.stop}]))""",
            f"""found.append(rlm_query(children[0], part({PART.start}, {PART.stop})))
places = [len(context), context.find("line 0050000"), context.count("little")]
places.append([match.start for match in grep("line 00[1-9]0000")])""",
            "FINAL(json.dumps([found, places]))",
        ),
    ),
    "uploaded": Script(
        prompts=6,
        sub_calls=6,
        cells=(
            """import json, zlib
found = llm_query_batched(prompts)
crc = zlib.crc32(context.encode())""",
            "FINAL(json.dumps([found, len(context), crc]))",
        ),
    ),
    "cancelled": Script(
        prompts=6,
        sub_calls=6,
        children="ab",
        cells=(_DRAW, "rlm_query_batched(children)"),
    ),
}
"""What each kind of run does."""
