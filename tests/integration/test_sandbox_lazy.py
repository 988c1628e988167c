"""Texts larger than a session's memory, in a real guest: by reference, read as they are used."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from tests.support.eventually import eventually
from tests.support.least import least
from tests.support.sandbox import Sandbox, guest, sandbox
from tests.support.sandbox_calls import value

pytestmark = pytest.mark.guest
Mount = session_pb2.ContextMount
MIB = 1 << 20
SMALL = session_pb2.SessionLimits(memory_bytes_max=64 * MIB)
"""Of such a session a quarter is 16 MiB: what is larger comes by reference."""
LINE = "Zeile {:07d}: caf\u00e9 \u20ac \U0001f600 und mehr, mehr, mehr Text\n"
TEXT = "".join(LINE.format(number) for number in range(100_000))


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


@pytest.fixture
async def session(box: Sandbox) -> str:
    """A session whose `context` is TEXT, by reference."""
    return await box.create(contexts=[box.text(TEXT.encode())], limits=SMALL)


@pytest.mark.parametrize(
    ("size_bytes", "is_lazy"), [(16 * MIB, False), (16 * MIB + 1, True)], ids=["str", "lazy"]
)
async def test_a_text_above_a_quarter_of_the_memory_comes_by_reference(
    box: Sandbox, size_bytes: int, is_lazy: bool
) -> None:
    session = await box.create(contexts=[box.text(b"x" * size_bytes)], limits=SMALL)

    kind = await value(box, session, "[type(context).__name__, len(context), context[-1]]")

    assert kind == ["LazyText" if is_lazy else "str", size_bytes, "x"]
    assert list((await box.session(session)).lazy_variables) == ["context"] * is_lazy


async def test_contexts_that_do_not_fit_together_come_by_reference(box: Sandbox) -> None:
    """Each alone would be a `str`."""
    mounts = [box.text(b"x" * (8 * MIB), variable=f"v{number}") for number in range(3)]

    session = await box.create(contexts=mounts, limits=SMALL)

    assert list((await box.session(session)).lazy_variables) == ["v2"]


async def test_it_is_read_like_a_str(box: Sandbox, session: str) -> None:
    asked = {
        "len(context)": len(TEXT),
        "context[1_000_000:1_000_050]": TEXT[1_000_000:1_000_050],
        "context[-30:]": TEXT[-30:],
        "context[123_456]": TEXT[123_456],
        "context[5_000_000:0:-1_000_003]": TEXT[5_000_000:0:-1_000_003],
        "context.find('Zeile 0099999')": TEXT.find("Zeile 0099999"),
        "context.rfind('\U0001f600')": TEXT.rfind("\U0001f600"),
        "context.count('mehr')": TEXT.count("mehr"),
        "'Zeile 0050000' in context": True,
        "'nowhere' in context": False,
        "context.startswith('Zeile'), context.endswith('Text\\n')": [True, True],
        "len(context.splitlines()), context.splitlines()[77]": [100_000, LINE.format(77)[:-1]],
        "context.split('\\n')[-2:]": [LINE.format(99_999)[:-1], ""],
        "sum(1 for line in context.splitlines() if line.startswith('Zeile 00000'))": 100,
        "sum(len(part) for part in context.chunks(999_999))": len(TEXT),
        "context.lines(5, 7)": [LINE.format(5)[:-1], LINE.format(6)[:-1]],
    }
    for code, expected in asked.items():
        assert await value(box, session, f"({code})") == expected, code


async def test_grep_gives_lines_numbers_and_places(box: Sandbox, session: str) -> None:
    found = await value(
        box,
        session,
        r"[(m.line_number, m.line, m.text, m.groups(), context[m.start:m.end])"
        r" for m in context.grep(r'zeile (00[0-9]+77): caf\w?', ignore_case=True, limit=2)]",
    )

    assert found[0] == [
        *(77, LINE.format(77)[:-1], "Zeile 0000077: caf", ["0000077"], "Zeile 0000077: caf"),
    ]
    assert found[1][0] == 177


async def test_grep_says_what_cut_it_off(box: Sandbox, session: str) -> None:
    notes = await value(
        box,
        session,
        "[context.grep('Zeile', limit=3).note, context.grep('Zeile', limit=10**6, timeout=0).note,"
        " context.grep('0099999').note]",
    )

    assert notes[0].startswith("stopped at the limit of 3; go on with start=")
    assert notes[1] == "stopped after 0 s at position 0"
    assert notes[2] == ""


@pytest.mark.parametrize("pattern", [r"(a)\1", r"(?=x)", r"(?<!x)y", "(", "(a{1000}){1000}"])
async def test_a_pattern_that_cannot_be_used_says_why(
    box: Sandbox, session: str, pattern: str
) -> None:
    ran = await box.run(session, f"context.grep({pattern!r})")

    assert ran.result.error.type == "ValueError"
    assert "pattern" in ran.result.error.message


async def test_a_pattern_that_explodes_elsewhere_takes_linear_time(box: Sandbox) -> None:
    """`(a+)+$` over a line of a million takes `re` longer than the universe has."""
    session = await box.create(contexts=[box.text(b"a" * (17 * MIB) + b"b")], limits=SMALL)

    ran = await box.run(session, "context.grep(r'(a+)+$'), context.grep(r'(a|a)*c')")

    assert ran.ending == "completed", ran.err
    assert ran.result.own_time.ToTimedelta().total_seconds() < 20


@pytest.mark.parametrize(
    "code",
    [
        "import re; re.findall('x', context)",
        "import re; re.search('x', context)",
        "import json; json.loads(context)",
        "context.lower()",
        "context.replace('a', 'b')",
        "context.encode()",
        "len(context.split())",
        "context + 'x'",
        "f'{context}'",
        "print(context)",
        "context[:]",
        "context.lines()",
        "{context: 1}",
    ],
)
async def test_what_needs_the_whole_text_names_what_to_use(
    box: Sandbox, session: str, code: str
) -> None:
    """Whatever a model naturally writes, the answer says how to go on."""
    ran = await box.run(session, code)

    assert ran.ending == "raised"
    assert any(word in ran.err for word in ("context.grep", "positions")), ran.err
    assert (await box.run(session, "len(context)")).ending == "completed"


async def test_lines_too_long_to_be_read_say_where_their_parts_are(box: Sandbox) -> None:
    session = await box.create(contexts=[box.text(b"x\n" + b"y" * (20 << 20))], limits=SMALL)

    ran = await box.run(session, "context.lines(1, 2)")

    assert ran.ending == "raised"
    assert "context[2:1048578]" in ran.err
    assert (await box.run(session, "context[2:5]")).out == "'yyy'\n"


async def test_json_of_what_is_lazy_says_so(box: Sandbox, session: str) -> None:
    """What json.dumps says, "Object of type str is not JSON serializable", would only puzzle."""
    ran = await box.run(session, "import json; json.dumps({'text': context})")

    assert "Hint: a part of it is lazy" in ran.err


@pytest.mark.parametrize(
    "code",
    ["FINAL(context)", "FINAL_VAR('context')", "FINAL(context.split('\\n'))", "FINAL([context])"],
)
async def test_a_lazy_value_is_no_answer(box: Sandbox, session: str, code: str) -> None:
    """Its repr would pass for one."""
    ran = await box.run(session, code)

    assert ran.ending == "raised"
    assert not ran.result.HasField("final")
    assert "is no answer" in ran.err
    assert "Hint: the " in ran.err


@pytest.mark.parametrize(
    "code",
    [
        "llm_query(context)",
        "llm_query_batched(context)",
        "llm_query_batched([context])",
        "FINAL_VAR(context)",
        "grep(context)",
    ],
)
async def test_a_lazy_text_is_no_str_for_the_functions(
    box: Sandbox, session: str, code: str
) -> None:
    """Though `isinstance` says that it stands for one."""
    ran = await box.run(session, code)

    assert ran.ending == "raised"
    assert ran.result.error.type in ("TypeError", "ValueError")
    assert not box.gateway.requests
    assert (await box.run(session, "help(context)")).out.startswith("context\n")


async def test_grep_goes_on_as_its_note_says(box: Sandbox, session: str) -> None:
    code = "found = grep('Zeile', limit=2)\nexec('more = grep(\"Zeile\", limit=2, ' + \\\n"
    code += "     found.note.rpartition(' ')[2] + ')')"
    ran = await box.run(session, code)

    assert ran.ending == "completed", ran.err
    assert await value(box, session, "[m.line_number for m in more]") == [2, 3]


async def test_the_functions_take_any_context(box: Sandbox, session: str) -> None:
    asked = {
        "[m.line_number for m in grep('0000005:')]": [5],
        "lines(context, 2, 3)": [LINE.format(2)[:-1]],
        "lines(3, 4)": [LINE.format(3)[:-1]],
        "next(chunks(size=5))": "Zeile",
        "[m.text for m in grep(r'\\d+', 'a 12 b 3')]": ["12", "3"],
        "list(chunks('abcdef', 4, 1))": ["abcd", "def"],
        "lines('a\\nb\\nc', 1)": ["b", "c"],
    }
    for code, expected in asked.items():
        assert await value(box, session, code) == expected, code


async def test_a_cells_own_variable_of_a_functions_name_is_kept(box: Sandbox) -> None:
    """Models write `chunks = [...]` and `lines = ...` themselves."""
    session = await box.create(contexts=[box.text(b"abc")])
    await box.run(session, "chunks = [1]\nlines = context.splitlines()")

    assert (await box.run(session, "chunks, lines")).out == "([1], ['abc'])\n"


async def test_a_lazy_text_is_there_again_after_a_trap(box: Sandbox, session: str) -> None:
    await box.run(session, "x = context.find('0000005')\nL = context.splitlines()")
    await box.run(session, "import os\nos.abort()")

    assert await value(box, session, "[x, L[5]]") == [TEXT.find("0000005"), LINE.format(5)[:-1]]


async def test_a_lazy_text_is_there_again_in_another_worker(box: Sandbox, session: str) -> None:
    """Its blob and its index are opened anew, from the object store."""
    await box.run(session, "x = context[:5]")
    (pid,) = box.worker_pids()
    await eventually(lambda: box.table.find(session).is_saved)
    os.kill(pid, 9)

    async def is_evicted() -> bool:
        return (await box.session(session)).state == session_pb2.Session.STATE_EVICTED

    await eventually(is_evicted)
    assert await value(box, session, "[x, context[-5:], len(context)]") == [
        *(TEXT[:5], TEXT[-5:], len(TEXT)),
    ]


def sparse_text(box: Sandbox, path: Path, size_bytes: int, places: dict[int, bytes]) -> Mount:
    """Store a text of NULs that takes no room, with data at some places."""
    key = box.store(b"")
    with (path / key).open("r+b") as file:
        file.truncate(size_bytes)
        for place, data in places.items():
            os.pwrite(file.fileno(), data, place)
    described = session_pb2.TextShape(characters=size_bytes, code_point_max=0x7F)
    return Mount(
        variable="context",
        kind=Mount.KIND_TEXT,
        blob_key=key,
        size_bytes=size_bytes,
        text_shape=described,
    )


async def test_a_text_of_gigabytes_works_in_a_small_session(box: Sandbox, tmp_path: Path) -> None:
    """Two gigabytes are more than `len` can count in a 32-bit guest."""
    size_bytes = (2 << 30) + 100
    places = {1 << 30: b"\nfirst needle\n", size_bytes - 17: b"\nsecond needle 42"}
    mount = sparse_text(box, tmp_path, size_bytes, places)
    session = await box.create(contexts=[mount], limits=SMALL)
    (pid,) = box.worker_pids()
    before = anonymous_bytes(pid)

    grepped = "[(m.line_number, m.start) for m in context.grep('needle', timeout=1000)]"
    found = await value(box, session, f"[len(context), {grepped}]")

    assert found == [size_bytes, [[1, (1 << 30) + 7], [3, size_bytes - 9]]]
    assert await value(box, session, "context[-17:]") == "\nsecond needle 42"
    assert anonymous_bytes(pid) - before < 64 * MIB


def anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


async def test_a_search_is_interrupted_in_time(box: Sandbox, tmp_path: Path) -> None:
    mount = sparse_text(box, tmp_path, 256 * MIB, {})
    session = await box.create(contexts=[mount], limits=SMALL)
    code = "print('on')\nwhile True: context.grep('(x+x+)+y|[a-z]{3}q', timeout=100)"

    async def interrupted_after_s() -> float:
        events = []
        stopped = 0.0
        async for event in box.stream(session, code):
            events.append(event)
            if event.HasField("output"):
                stopped = time.monotonic()
                interrupt = wire.InterruptExecutionRequest(name=session)
                await box.stub.InterruptExecution(interrupt, timeout=30)
        assert events[-1].result.ending == events[-1].result.ENDING_INTERRUPTED
        return time.monotonic() - stopped

    assert await least(interrupted_after_s, under=0.5) < 0.5
    assert (await box.run(session, "len(context)")).ending == "completed"


async def test_time_spent_searching_is_the_cells_own(box: Sandbox, tmp_path: Path) -> None:
    limits = session_pb2.SessionLimits(memory_bytes_max=64 * MIB)
    limits.execute_time_max.FromMilliseconds(300)
    session = await box.create(contexts=[sparse_text(box, tmp_path, 256 * MIB, {})], limits=limits)

    ran = await box.run(session, "while True: context.grep('[a-z]+q')")

    assert ran.ending == "timed_out"


@pytest.mark.parametrize(
    "request_fields",
    [
        {"call": "read", "mount": 1, "text": 0, "start": 0, "stop": 5},
        {"call": "read", "mount": 0, "text": 1, "start": 0, "stop": 5},
        {"call": "read", "mount": 0, "text": 0, "start": -1, "stop": 5},
        {"call": "read", "mount": 0, "text": 0, "start": 0, "stop": 1 << 64},
        {"call": "read", "mount": 0, "text": 0, "start": "0", "stop": 5},
        {
            "call": "find",
            "mount": 0,
            "text": 0,
            "needle": "",
            "start": 0,
            "stop": 5,
            "what": "first",
        },
        {"call": "find", "mount": 0, "text": 0, "needle": "a", "start": 0, "stop": 5, "what": "x"},
        {"call": "items", "mount": 1, "text": 0, "table": 0, "start": 0, "stop": 5},
    ],
)
async def test_a_forged_question_is_refused(
    box: Sandbox, session: str, request_fields: dict[str, Any]
) -> None:
    """Code can go around our runtime; it learns nothing, and the session goes on."""
    frame = json.dumps(request_fields).encode()

    ran = await box.run(session, f"import _host\n_host.call({frame!r})")

    assert ran.ending == "raised", ran.out
    assert await value(box, session, "context[:5]") == TEXT[:5]


GREP = {"ignore_case": False, "limit": 1000, "time_s": 1e6}


@pytest.mark.parametrize(
    "request_fields",
    [
        {"call": "read", "start": (1 << 63) - 1, "stop": (1 << 63) - 1},
        {"call": "read", "start": 9, "stop": 3},
        {"call": "read", "start": 0, "stop": 1 << 40},
        {"call": "span", "start": 1 << 60, "stop": 0},
        {"call": "find", "needle": "mehr", "start": 1 << 60, "stop": 1, "what": "last"},
        {"call": "items", "table": 0, "start": 0, "stop": 5, "keys_only": False},
        {"call": "grep", "pattern": "", "start": 0, "stop": 1 << 62} | GREP,
    ],
)
async def test_an_odd_question_has_an_answer_of_bounded_size(
    box: Sandbox, session: str, request_fields: dict[str, Any]
) -> None:
    frame = json.dumps(request_fields | {"mount": 0, "text": 0}).encode()

    ran = await box.run(session, f"import _host\nlen(_host.call({frame!r}))")

    assert ran.ending == "completed", ran.err
    assert int(ran.out) <= 4 * MIB + 1


async def test_a_blob_cut_short_underneath_is_an_error_of_the_cell(
    box: Sandbox, session: str, tmp_path: Path
) -> None:
    """A mapping would have killed the worker."""
    (blob,) = (tmp_path / "contexts").iterdir()
    os.truncate(blob, 1_000_000)

    for code in ("context[-5:]", "context.grep('0099999')", "context.count('mehr')"):
        ran = await box.run(session, code)
        assert ran.result.error.type == "OSError", ran.err
        assert "can no longer be read" in ran.result.error.message
    assert await value(box, session, "context[:5]") == TEXT[:5]
