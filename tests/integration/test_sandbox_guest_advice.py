"""What the guest tells a model that cannot see where it is: hints, help, what was cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.sandbox import Sandbox, guest, sandbox

pytestmark = pytest.mark.guest
FILES, NETWORK, PROCESSES = "no files here", "no network here", "no processes can be started"
THREADS, PACKAGES, ASK = "no threads can be started", "cannot be installed", "nobody to answer"


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


@pytest.fixture
async def session(box: Sandbox) -> str:
    return await box.create()


@pytest.mark.parametrize(
    ("code", "error", "hint"),
    [
        ("open('/etc/passwd')", "FileNotFoundError", FILES),
        ("with open('out.txt', 'w') as f:\n    f.write('x')", "FileNotFoundError", "io.StringIO"),
        ("import pathlib\npathlib.Path('x').read_text()", "FileNotFoundError", FILES),
        ("import os\nos.listdir('.')", "FileNotFoundError", FILES),
        ("import tempfile\ntempfile.NamedTemporaryFile()", "FileNotFoundError", FILES),
        ("import sqlite3\nsqlite3.connect('a.db')", "OperationalError", ":memory:"),
        ("import requests", "ModuleNotFoundError", NETWORK),
        ("from urllib.request import urlopen\nurlopen('http://a.b')", "AttributeError", NETWORK),
        ("import http.client as h\nh.HTTPSConnection('a.b')", "AttributeError", NETWORK),
        ("import socket\nsocket.create_connection(('a', 1))", "AttributeError", NETWORK),
        ("import openai", "ModuleNotFoundError", "llm_query(prompt)"),
        ("import tiktoken", "ModuleNotFoundError", PACKAGES),
        ("import fcntl", "ModuleNotFoundError", "needs an operating system"),
        ("import subprocess\nsubprocess.run(['ls'])", "OSError", PROCESSES),
        ("import os\nos.system('ls')", "AttributeError", PROCESSES),
        ("import os\nos.popen('ls')", "OSError", PROCESSES),
        ("import os\nos.fork()", "AttributeError", PROCESSES),
        ("import multiprocessing\nmultiprocessing.Pool(2)", "AttributeError", PROCESSES),
        (
            "import threading\nthreading.Thread(target=print).start()",
            "RuntimeError",
            "llm_query_batched(prompts)",
        ),
        ("import threading\nthreading.Timer(1, print).start()", "RuntimeError", THREADS),
        ("import signal\nsignal.alarm(5)", "AttributeError", "no signals here"),
        ("name = input('Which? ')", "EOFError", ASK),
        ("x = [0] * 10**9", "MemoryError", "piece by piece"),
        (
            "import asyncio\nasync def f():\n    return asyncio.run(f())\nawait f()",
            "RuntimeError",
            "await main()",
        ),
        ("async def f():\n    return 'a'\nf().upper()", "AttributeError", "put `await` before"),
        ("x = 'a'\nawait x", "TypeError", "leave out `await`"),
        (
            "raise ExceptionGroup('several', [OSError(2, 'x'), KeyError('y')])",
            "ExceptionGroup",
            FILES,
        ),
    ],
)
async def test_what_webassembly_has_not_is_named_with_what_to_do_instead(
    box: Sandbox, session: str, code: str, error: str, hint: str
) -> None:
    """Python's own message does not say that trying it another way is of no use."""
    ran = await box.run(session, code)

    assert (ran.ending, ran.result.error.type) == ("raised", error)
    assert hint in ran.err.splitlines()[-1]
    assert "Site initialization" not in ran.err


@pytest.mark.parametrize(
    "code",
    [
        "raise FileNotFoundError('mine')",
        "raise RuntimeError('mine')",
        "1 / 0",
        "{}['a']",
        "import os\nos.nothing",
        "class E(OSError):\n    def __str__(self):\n        raise SystemExit\nraise E(2, 'x')",
    ],
)
async def test_other_errors_get_no_advice(box: Sandbox, session: str, code: str) -> None:
    """A hint that is not to the point would be followed all the same."""
    ran = await box.run(session, code)

    assert ran.ending == "raised"
    assert "Hint" not in ran.err


@pytest.mark.parametrize(
    ("code", "line", "hint"),
    [
        ("```python\nprint(1)\n```", 1, "Markdown fence"),
        ("x = 1\n```", 2, "Markdown fence"),
        ("x = 1\nprint(“hello”)", 2, "plain ASCII quotes"),
        ('x = 1\nprint("hello)', 2, "triple quotes"),
        ("x = '''abc\n", 1, "triple quotes"),
        ("def f():\n    await g()", 2, "begin it with `async def`"),
        ("Let me look at the context first.\nprint(context)", 1, "reads like text"),
        ("First, I'll check the data:\nx = 1", 1, ""),
        ('print "hello"', 1, "Did you mean print(...)?"),
        ("!pip install pandas", 1, "shell commands"),
        ("pip install pandas", 1, "shell commands"),
        ("%timeit f()", 1, "shell commands"),
        ("x = 1\n  y = 2", 2, "left margin"),
        ("for i in range(3):\nprint(i)", 2, "left margin"),
        ("x = (1,\nprint(2)", 1, "never closed"),
    ],
)
async def test_code_that_does_not_parse_is_shown_with_its_line(
    box: Sandbox, session: str, code: str, line: int, hint: str
) -> None:
    """The mistakes that models make most; each costs a turn, at least let it not cost two."""
    ran = await box.run(session, code)

    assert ran.ending == "syntax_error"
    assert f'File "<cell 1>", line {line}\n    {code.splitlines()[line - 1].strip()}' in ran.err
    assert hint in ran.err


@pytest.mark.parametrize(("extra", "is_whole"), [(0, True), (1, False)])
async def test_one_huge_write_keeps_its_head_and_tail(
    box: Sandbox, session: str, extra: int, is_whole: bool
) -> None:
    """Nobody reads megabytes, and they would use up the room of what comes after."""
    size = (256 << 10) + extra

    ran = await box.run(session, f"x = 'a' + 'b' * ({size} - 2) + 'c'\nprint(x, end='')")

    assert (len(ran.out) == size) == is_whole
    assert (ran.out[0], ran.out[-1]) == ("a", "c")
    assert (f"of {size:,} characters left out" in ran.out) != is_whole


@pytest.mark.parametrize("code", ["x", "print(list(x))", "import sys\nsys.stderr.write(x)\nNone"])
async def test_whatever_writes_it_is_cut(box: Sandbox, session: str, code: str) -> None:
    await box.run(session, "x = 'é' * 1_000_000")

    ran = await box.run(session, f"{code}\nprint('after')")
    written = ran.out + ran.err

    assert 200_000 < len(written) < 300_000 or code == "x"
    assert ran.out.endswith("after\n")


async def test_the_echo_of_a_huge_text_is_its_own_repr_cut(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "'a\\n' * 500_000")

    assert ran.out.startswith("'a\\na\\n")
    assert ran.out.endswith("a\\n'\n")
    assert "of 1,000,000 characters left out: print a slice" in ran.out


async def test_help_lists_what_is_provided(box: Sandbox, session: str) -> None:
    """Models do call it."""
    ran = await box.run(session, "help()")

    for name in (
        "llm_query(prompt",
        "llm_query_batched(prompts",
        "FINAL(value",
        "FINAL_VAR(name",
    ):
        assert name in ran.out
    assert "SHOW_VARS()" in ran.out
    assert len(ran.out) < 4_000


@pytest.mark.parametrize(
    ("topic", "texts"),
    [
        ("llm_query", ["llm_query(prompt, *, tier=None", 'llm_query("Who signed', "LLMQueryError"]),
        ("'llm_query_batched'", ["llm_query_batched(prompts, *", "isinstance(answer, str)"]),
        ("FINAL", ["FINAL(value", 'FINAL("Maria']),
        ("FINAL_VAR", ["FINAL_VAR(name", 'FINAL_VAR("report")']),
        ("SHOW_VARS", ["SHOW_VARS()", "12,345 characters"]),
        ("FailedQuery", ["falsy"]),
        ("len", ["Return the number of items"]),
        ("str", ["<class 'str'>", ".splitlines"]),
        ("json", ["<module 'json'", ".loads"]),
        ("'json'", ["<module 'json'"]),
        ("f", ["f(a, b=1)", "Add them."]),
        ("odd", ["Odd"]),
    ],
)
async def test_help_on_a_name_is_short_and_has_an_example(
    box: Sandbox, session: str, topic: str, texts: list[str]
) -> None:
    await box.run(
        session,
        "import json\ndef f(a, b=1):\n    'Add them.'\n"
        "class Odd:\n    def __getattr__(self, name):\n        raise RuntimeError\nodd = Odd()",
    )

    ran = await box.run(session, f"help({topic})")

    assert ran.ending == "completed", ran.err
    assert [text for text in texts if text not in ran.out] == []
    assert len(ran.out) < 7_000


async def test_variables_are_shown_with_types_and_sizes(box: Sandbox) -> None:
    session = await box.create(contexts=[box.text(b"x" * 12_345)])
    cell = (
        "import numpy as np, pandas as pd\nrows = [1, 2, 3]\nd = {}\nn = 7\nraw = b'abc'\n"
        "a = np.zeros((1000, 3))\ndf = pd.DataFrame({'a': [1, 2]})\nanswer = llm_query('a')\n"
        "answers = llm_query_batched(['a'])\ndef f():\n    pass\n_hidden = 1\nSHOW_VARS()"
    )

    ran = await box.run(session, cell)

    assert eval(ran.out) == {
        "context": "str, 12,345 characters",
        "rows": "list, 3 items",
        "d": "dict, 0 items",
        "n": "int",
        "raw": "bytes, 3 bytes",
        "a": "ndarray, 1,000 x 3",
        "df": "DataFrame, 2 x 1",
        "answer": "str, 5 characters",
        "answers": "list, 1 items",
        "f": "function",
    }


async def test_odd_variables_do_not_break_the_list(box: Sandbox, session: str) -> None:
    cell = (
        "class A:\n    def __len__(self):\n        raise SystemExit\n"
        "    shape = property(lambda self: 1 / 0)\nA.__module__ = 'numpy'\na = A()\n"
        "class B:\n    __module__ = 7\nb = B()\nfailed = FailedQuery(0, 'R', 'm')\nSHOW_VARS()"
    )

    ran = await box.run(session, cell)

    assert ran.ending == "completed", ran.err
    assert "'a': 'A', 'B': 'type', 'b': 'B', 'failed': 'FailedQuery'" in ran.out
