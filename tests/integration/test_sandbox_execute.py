"""Cells in a real guest: REPL semantics, every ending, and what is left afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.sandbox.v1 import execution_pb2, session_pb2
from google.protobuf.duration_pb2 import Duration

from tests.support.least import least
from tests.support.sandbox import Ran, Sandbox, guest, sandbox

pytestmark = pytest.mark.guest
Stream = execution_pb2.OutputChunk


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


@pytest.fixture
async def session(box: Sandbox) -> str:
    return await box.create()


def limits(**fields: object) -> session_pb2.SessionLimits:
    return session_pb2.SessionLimits(**fields)  # type: ignore[arg-type]


async def outputs(box: Sandbox, session: str, *cells: str) -> list[str]:
    return [(await box.run(session, cell)).out for cell in cells]


async def test_names_live_from_cell_to_cell(box: Sandbox, session: str) -> None:
    """One namespace, with classes, functions and generators as in any Python."""
    cells = (
        "class A:\n    def twice(self, n):\n        return [n * k for k in (1, 2)]",
        "a = A()\ndef f(n):\n    yield from a.twice(n)",
        "print(list(f(3)), sum(x for x in f(3)))",
    )

    assert (await outputs(box, session, *cells))[-1] == "[3, 6] 9\n"


async def test_the_last_expression_is_echoed_and_evaluated_once(box: Sandbox, session: str) -> None:
    """An echo by running the line again would pay every sub-call twice."""
    cell = "calls = []\nfor i in range(3):\n    calls.append(i)\nlen(calls) or calls.append(9)"

    assert await outputs(box, session, cell, "calls", "None", "x = 1", "_") == [
        "3\n",
        "[0, 1, 2]\n",
        "",
        "",
        "[0, 1, 2]\n",
    ]


async def test_await_works_at_top_level(box: Sandbox, session: str) -> None:
    cell = (
        "import asyncio\n"
        "async def f(n):\n    await asyncio.sleep(0.001 * n)\n    return n\n"
        "print(await asyncio.gather(f(3), f(1)))\n"
        "await f(2)"
    )

    assert await outputs(box, session, cell, "asyncio.run(f(4))") == ["[3, 1]\n2\n", "4\n"]


async def test_waiting_for_nothing_is_an_error_and_no_hang(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "import asyncio\nawait asyncio.Event().wait()")

    assert ran.ending == "raised"
    assert "never happen" in ran.result.error.message


async def test_an_error_shows_the_codes_own_frames_with_their_lines(
    box: Sandbox, session: str
) -> None:
    """A model mends what it can see; frames of the runtime would only confuse it."""
    await box.run(session, "def f(n):\n    return 1 / n")

    ran = await box.run(session, "x = 5\nf(0)")

    assert ran.ending == "raised"
    assert ran.result.state_kept
    assert ran.result.error.type == "ZeroDivisionError"
    assert ran.result.error.message == "division by zero"
    trace = ran.result.error.traceback
    assert 'File "<cell 2>", line 2, in <module>\n    f(0)' in trace
    assert 'File "<cell 1>", line 2, in f\n    return 1 / n' in trace
    assert trace.count("File ") == 2
    assert ran.err == trace
    assert (await box.run(session, "x")).out == "5\n"


async def test_what_was_printed_before_an_error_is_kept(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "print('before')\nraise ValueError('no')")

    assert ran.out == "before\n"


async def test_output_keeps_its_order_over_both_streams(box: Sandbox, session: str) -> None:
    cell = (
        "import sys\nfor i in range(3):\n    print('out', i)\n    print('err', i, file=sys.stderr)"
    )

    ran = await box.run(session, cell)

    chunks = [event.output for event in ran.events if event.HasField("output")]
    assert "".join(chunk.text for chunk in chunks) == "".join(
        f"out {i}\nerr {i}\n" for i in range(3)
    )
    assert [chunk.stream for chunk in chunks] == [Stream.STREAM_STDOUT, Stream.STREAM_STDERR] * 3


async def test_output_comes_while_the_cell_runs(box: Sandbox, session: str) -> None:
    """A cell that prints and then works for long shows what it printed."""
    cell = "print('first')\nllm_query('hold')\nprint('second')"
    seen = []

    async for event in box.stream(session, cell):
        seen.append(event.WhichOneof("event"))
        if event.output.text == "first\n":
            box.gateway.hold.set()

    assert seen.index("output") < seen.index("sub_call_finished")


async def test_characters_are_whole_in_every_chunk(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "print('é€😀' * 50_000)")

    assert ran.out == "é€😀" * 50_000 + "\n"


async def test_code_that_does_not_parse_does_not_run(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "print('ran')\nx = (")

    assert ran.ending == "syntax_error"
    assert ran.out == ""
    assert ran.result.error.type == "SyntaxError"
    assert "line 2" in ran.result.error.traceback


@pytest.mark.parametrize("cell", ["(" * 150 + ")" * 150, "x\0y", "-" * 100_000 + "1"])
async def test_code_that_the_parser_cannot_take_is_a_syntax_error(
    box: Sandbox, session: str, cell: str
) -> None:
    assert (await box.run(session, cell)).ending == "syntax_error"
    assert (await box.run(session, "1")).out == "1\n"


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("def f():\n    f()\nf()", "RecursionError"),
        ("x = []\nfor _ in range(100_000):\n    x = [x]\nrepr(x)", "RecursionError"),
        ("[0] * 10**9", "MemoryError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class B:\n    def __repr__(self):\n        return 1 / 0\nB()", "ZeroDivisionError"),
        (
            "class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E",
            "E",
        ),
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("open('/tmp/x', 'w')", "FileNotFoundError"),
        ("import subprocess\nsubprocess.run(['ls'])", "OSError"),
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
        ("raise BaseException('odd')", "BaseException"),
        ("import _host\n_host.call(b'junk')", "ConnectionRefusedError"),
        ("import _host\n_host.call(b'[' * 100_000)", "ConnectionRefusedError"),
    ],
)
async def test_what_a_cell_may_do_wrong_is_an_exception(
    box: Sandbox, session: str, cell: str, error: str
) -> None:
    """The session lives on with all that it had."""
    await box.run(session, "kept = 1")

    ran = await box.run(session, cell)

    assert (ran.ending, ran.result.error.type) == ("raised", error)
    assert ran.result.state_kept
    assert (await box.run(session, "kept")).out == "1\n"


async def test_sys_exit_ends_the_cell_and_not_the_session(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "x = 1\nimport sys\nsys.exit('enough')\nx = 2")

    assert (ran.ending, ran.result.error.message) == ("exited", "enough")
    assert ran.result.state_kept
    assert (await box.run(session, "x")).out == "1\n"


async def test_leaving_the_process_restores_the_state_before(box: Sandbox, session: str) -> None:
    await box.run(session, "x = 1")

    ran = await box.run(session, "x = 2\nimport os\nos._exit(3)")

    assert (ran.ending, ran.result.error.message) == ("exited", "3")
    assert not ran.result.state_kept
    assert (await box.run(session, "x")).out == "1\n"


async def restored(box: Sandbox, session: str, cell: str) -> Ran:
    """Run a cell that is stopped, and check that the state before it is back."""
    setup = "state = {'a': [1, 2]}\nclass C:\n    v = 7\ndef f(n):\n    return n * C.v"
    assert (await box.run_in_time(session, setup)).ending == "completed"

    ran = await box.run(session, f"state['a'].append(3)\nC.v = 0\n{cell}")

    assert not ran.result.state_kept
    after = await box.run_in_time(session, "state, f(2), llm_query('still there')")
    assert after.out == "({'a': [1, 2]}, 14, 're: still there')\n"
    return ran


async def test_a_trap_restores_the_state_before(box: Sandbox, session: str) -> None:
    """The instance is gone; the session is not."""
    ran = await restored(box, session, "import os\nos.abort()")

    assert ran.ending == "trapped"
    assert "interpreter gave up" in ran.result.error.message


async def test_a_second_trap_in_a_row_is_no_different(box: Sandbox, session: str) -> None:
    for _ in range(3):
        await restored(box, session, "import os\nos.abort()")


async def test_output_before_a_trap_is_kept(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "print('last words')\nimport os\nos.abort()")

    assert ran.out == "last words\n"


async def test_fuel_ends_a_cell_and_is_fresh_for_the_next(box: Sandbox) -> None:
    session = await box.create(limits=limits(fuel_max=300_000_000))

    ran = await restored(box, session, "while True:\n    pass")

    assert ran.ending == "out_of_fuel"
    assert ran.result.fuel_used == 300_000_000


async def test_a_cell_within_its_fuel_completes(box: Sandbox) -> None:
    session = await box.create()
    used = (await box.run(session, "sum(range(100_000))")).result.fuel_used
    tight = await box.create(limits=limits(fuel_max=used * 2))

    assert (await box.run(tight, "sum(range(100_000))")).ending == "completed"
    assert (await box.run(tight, "sum(range(1_000_000))")).ending == "out_of_fuel"


@pytest.mark.parametrize(
    "cell",
    [
        "while True:\n    pass",
        "from time import sleep\nsleep(1000)",
        "10 ** 10 ** 8",
        "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
        "from asyncio import sleep\nawait sleep(1000)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ],
)
async def test_time_ends_a_cell(box: Sandbox, cell: str) -> None:
    """Also in the middle of C code, of a sleep, or of a handler of everything."""
    session = await box.create(limits=limits(execute_time_max=Duration(nanos=150_000_000)))

    ran = await restored(box, session, cell)

    assert ran.ending == "timed_out"
    # By the worker: where the service has to do it, the ending is another.
    assert ran.result.own_time.ToTimedelta().total_seconds() >= 0.15


async def test_the_wait_for_a_sub_model_is_not_the_cells_time(box: Sandbox) -> None:
    """A slow provider must not cost a cell its deadline."""
    limit = limits(execute_time_max=Duration(seconds=1))

    async def own_time_s() -> float:
        box.gateway.hold.clear()
        begun: list[execution_pb2.ExecutionEvent] = []
        events = box.stream(await box.create(limits=limit), "llm_query('hold')\nprint('done')")
        async for event in events:
            begun.append(event)
            if event.HasField("sub_call_started"):
                break
        # Another cell runs into the same limit meanwhile: so that much time has passed for sure.
        other = await box.run(await box.create(limits=limit), "while True:\n    pass")
        assert other.ending == "timed_out"
        box.gateway.hold.set()
        ran = Ran([*begun, *[event async for event in events]])
        taken_s = ran.result.own_time.ToTimedelta().total_seconds()
        if taken_s < 1.0:
            assert (ran.ending, ran.out) == ("completed", "done\n")
            assert ran.result.wait_time.ToTimedelta().total_seconds() >= 1.0
        return taken_s

    assert await least(own_time_s, under=1.0) < 1.0


async def test_memory_ends_in_a_memory_error(box: Sandbox) -> None:
    session = await box.create(limits=limits(memory_bytes_max=80 << 20))

    ran = await box.run(session, "x = []\nwhile True:\n    x.append('y' * 1000)")

    assert (ran.ending, ran.result.error.type) == ("raised", "MemoryError")
    assert ran.result.memory_bytes <= 80 << 20
    assert (await box.run(session, "del x\n'alive'")).out == "'alive'\n"


async def test_a_cell_that_leaves_no_memory_for_the_next_is_undone(box: Sandbox) -> None:
    """Else the session could not even run the cell that frees it."""
    session = await box.create(limits=limits(memory_bytes_max=80 << 20))
    await box.run(session, "x = 'before'")
    hoard = "".join(
        f"try:\n    while True: x.append(bytearray({size}))\nexcept MemoryError: pass\n"
        for size in (1_000_000, 1_000, 10)
    )

    ran = await box.run(session, f"x = []\n{hoard}")

    assert (ran.ending, ran.result.state_kept) == ("out_of_memory", False)
    assert ran.result.error.type == "MemoryError"
    assert (await box.run(session, "x")).out == "'before'\n"


async def test_an_answer_made_around_the_runtime_has_the_same_limit(
    box: Sandbox, session: str
) -> None:
    """The host takes no more than the contract says, whoever asks."""
    report = (
        '{"call": "ended", "ending": "completed", "error": null, "variables": [],'
        ' "final": {"text": "%s", "is_json": false, "variable": ""}}'
    )
    cell = f"import _host\n_host.call(({report!r} % ('€' * 400_000)).encode())"

    ran = await box.run(session, cell)

    assert (ran.ending, ran.result.error.type) == ("raised", "ConnectionRefusedError")


@pytest.mark.parametrize(("extra", "dropped"), [(0, 0), (5, 5)])
async def test_output_is_cut_at_its_limit_and_the_cell_goes_on(
    box: Sandbox, extra: int, dropped: int
) -> None:
    session = await box.create(limits=limits(output_bytes_max=100))

    ran = await box.run(session, f"print('x' * {99 + extra})\ndone = 1")

    assert ran.ending == "completed"
    assert len(ran.out) == 100
    assert ran.result.output_bytes == 100 + extra
    assert ran.result.output_bytes_dropped == dropped
    assert (await box.run(session, "done")).out == "1\n"


async def test_the_limit_of_output_cuts_no_character_in_two(box: Sandbox) -> None:
    session = await box.create(limits=limits(output_bytes_max=4))

    ran = await box.run(session, "print('€€')")

    assert ran.out == "€"
    assert ran.result.output_bytes_dropped == 3


async def test_a_flood_of_output_is_counted(box: Sandbox) -> None:
    session = await box.create(limits=limits(output_bytes_max=1000))

    ran = await box.run(session, "for _ in range(200):\n    print('y' * 250_000)")

    assert (ran.ending, len(ran.out)) == ("completed", 1000)
    assert ran.result.output_bytes == 200 * 250_001


async def test_a_cell_may_give_the_answer_and_goes_on(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "FINAL('first')\nFINAL({'n': [1, 2]})\nprint('after')")

    assert ran.out == "after\n"
    assert (ran.result.final.text, ran.result.final.is_json) == ('{"n": [1, 2]}', True)
    assert not (await box.run(session, "1")).result.HasField("final")


async def test_a_variable_may_be_the_answer(box: Sandbox, session: str) -> None:
    await box.run(session, "answer = 'a long text'")

    final = (await box.run(session, "FINAL_VAR('answer')")).result.final

    assert (final.text, final.is_json, final.variable) == ("a long text", False, "answer")


@pytest.mark.parametrize(
    ("call", "confidence"),
    [
        ("FINAL('x', confidence=0.9)", 0.9),
        ("FINAL_VAR('answer', confidence=1)", 1.0),
        ("FINAL('x', confidence=0)", 0.0),
        ("FINAL('x')", None),
    ],
)
async def test_an_answer_says_how_sure_it_is(
    box: Sandbox, session: str, call: str, confidence: float | None
) -> None:
    """A run may end early on that, so silence is not the same as no confidence at all."""
    final = (await box.run(session, f"answer = 'a'\n{call}")).result.final

    assert (final.confidence if final.HasField("confidence") else None) == confidence


@pytest.mark.parametrize("wrong", ["1.01", "-0.1", "float('nan')", "'very'", "[]"])
async def test_a_confidence_that_is_none_gives_no_answer(
    box: Sandbox, session: str, wrong: str
) -> None:
    ran = await box.run(session, f"FINAL('x', confidence={wrong})")

    assert ran.ending == "raised"
    assert not ran.result.HasField("final")


async def test_a_missing_variable_is_an_error_that_names_the_others(
    box: Sandbox, session: str
) -> None:
    await box.run(session, "found = 1\ncount = 2")

    ran = await box.run(session, "FINAL_VAR('answer')")

    assert (ran.ending, ran.result.error.type) == ("raised", "NameError")
    assert "'answer'" in ran.result.error.message
    assert "found, count" in ran.result.error.message
    assert not ran.result.HasField("final")


async def test_variables_are_described_when_asked(box: Sandbox, session: str) -> None:
    await box.run(session, "text = 'a' * 1000\nn = 3\nimport re\n_hidden = 1")

    ran = await box.run(session, "None", report_variables=True)

    described = {v.name: (v.type, v.length, v.preview) for v in ran.result.variables}
    assert described == {
        "text": ("str", 1000, ("'" + "a" * 1000)[:200]),
        "n": ("int", 0, "3"),
    }
    assert not (await box.run(session, "None")).result.variables


async def test_provided_names_come_back_with_the_next_cell(box: Sandbox, session: str) -> None:
    """A model that assigns to FINAL by mistake can still answer."""
    await box.run(session, "FINAL = 'oops'\nllm_query = None")

    ran = await box.run(session, "FINAL(llm_query('x'))")

    assert ran.result.final.text == "re: x"


async def test_imports_of_the_library_work(box: Sandbox, session: str) -> None:
    """Also those that the warm image does not hold already."""
    cell = (
        "import zipfile, sqlite3, xml.etree.ElementTree, decimal, uuid, numpy\n"
        "str(decimal.Decimal(1) / 3)[:6], int(numpy.arange(5).sum())"
    )

    assert (await box.run(session, cell)).out == "('0.3333', 10)\n"


async def test_two_sessions_share_nothing(box: Sandbox, session: str) -> None:
    """They start from the same pages, and differ in what they write and in their randomness."""
    other = await box.create()
    draw = "import random\nx = 1\nrandom.random()"

    first, second = await outputs(box, session, draw), await outputs(box, other, draw)
    await box.run(session, "x = 2\nimport builtins\nbuiltins.len = None")

    assert first != second
    assert (await box.run(other, "x, len('abc')")).out == "(1, 3)\n"
