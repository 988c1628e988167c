"""The check of a cell's code, run by this Python: what it notices, where, and what it lets be."""

from __future__ import annotations

import ast
import typing
from typing import Any

import msgspec
import pytest

from sandbox_service import frames
from sandbox_service.guest import code_check


def found(source: str) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    return code_check.findings(tree, [compile(tree, "<cell 1>", "exec")])


def patterns(source: str) -> set[str]:
    return {item["pattern"] for item in found(source)}


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("import ctypes", "ctypes"),
        ("def f():\n    from ctypes import CDLL", "ctypes"),
        ("import ｃｔｙｐｅｓ", "ctypes"),
        ("from cffi import FFI", "ctypes"),
        ("import socket as s", "socket"),
        ("import ssl", "socket"),
        ("import subprocess", "subprocess"),
        ("import os\nos.system('ls')", "subprocess"),
        ("import os\nos.execvp('ls', [])", "subprocess"),
        ("import os\nos.fork()", "subprocess"),
        ("from os import system", "subprocess"),
        ("import os\ngetattr(os, 'system')", "subprocess"),
        ("import pty", "subprocess"),
        ("import multiprocessing.pool", "multiprocessing"),
        ("import _thread", "multiprocessing"),
        ("().__class__.__bases__[0].__subclasses__()", "dunder-walk"),
        ("f = lambda: 0\nf.__globals__", "dunder-walk"),
        ("getattr(print, '__glo' + 'bals__')", "dunder-walk"),
        ("import operator\noperator.attrgetter('__class__.__mro__')", "dunder-walk"),
        ("vars(f)['__code__']", "dunder-walk"),
        ("__builtins__['print'] = None", "dunder-walk"),
        ("g.gi_frame.f_back", "frame-walk"),
        ("import sys\nsys._getframe(1)", "frame-walk"),
        ("import _host", "host-door"),
        ("__import__('_host')", "host-door"),
        ("import importlib\nimportlib.import_module('_ho' + 'st')", "host-door"),
        ("import fathom_guest.cells", "host-door"),
        ("__cell__()", "host-door"),
        ("import sys\nsys.modules['json'] = None", "module-tampering"),
        ("from sys import modules", "module-tampering"),
        ("import sys\nsys.settrace(print)", "tracing"),
        ("import sys\nsys.setprofile(print)", "tracing"),
        ("import gc\ngc.get_objects()", "heap-walk"),
        ("import gc\ngc.get_referrers(1)", "heap-walk"),
        ("import marshal", "serialized-code"),
        ("import pickle\npickle.loads(b'cos\\nsystem\\n')", "serialized-code"),
        ("import pickle, base64\npickle.loads(base64.b64decode('gASVAA=='))", "serialized-code"),
        ("exec('import ' + 'os')", "built-code"),
        ("eval(''.join(['1', '+1']))", "built-code"),
        ("exec(bytes([112]).decode())", "built-code"),
        ("import builtins\nbuiltins.exec(code)", "built-code"),
        ("async def f():\n    class C:\n        x = [g.__code__ for g in y]", "dunder-walk"),
    ],
)
def test_a_suspicious_pattern_is_noticed(source: str, pattern: str) -> None:
    """Also where it stands deep in the cell, or in one of the usual disguises."""
    assert pattern in patterns(source)


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        "import re, json, os, sys\nre.compile('a').findall(json.loads('\"a\"'))",
        "os.path.join('a', 'b'), sys.version, os.environ",
        "import ast\nast.literal_eval('[1]')",
        "eval('1 + 1')",
        "frame.eval(expression), frame.query(condition)",
        "messages = [{'role': 'system', 'content': 'You know the subprocess module.'}]",
        "import pickle\ncopy = pickle.loads(pickle.dumps([1]))",
        "class A:\n    def __init__(self):\n        super().__init__()\n    __slots__ = ()",
        "a.__class__.__name__, a.__doc__, a.__dict__",
        "getattr(value, 'name', None)",
        "print('system', 'modules', 'kill')",
        "from concurrent.futures import ThreadPoolExecutor\nimport threading, asyncio",
        "answers = llm_query_batched([f'Sum: {p}' for p in pieces])",
    ],
)
def test_ordinary_code_has_no_findings(source: str) -> None:
    """An alarm that always rings is none."""
    assert found(source) == []


def test_a_finding_says_where_and_what() -> None:
    source = "x = 1\n\nimport ctypes\ny = f.__globals__"

    assert found(source) == [
        {"pattern": "ctypes", "line": 3, "detail": "import ctypes"},
        {"pattern": "dunder-walk", "line": 4, "detail": ".__globals__"},
    ]


@pytest.mark.parametrize(("extra", "is_found"), [(0, False), (1, True)])
def test_a_literal_that_data_could_be_smuggled_in_is_noticed(extra: int, is_found: bool) -> None:
    literal = "z" * (code_check.LITERAL_CHARACTERS_MAX + extra)

    assert patterns(f"x = '{literal}'") == ({"long-literal"} if is_found else set())
    assert patterns(f"x = b'{literal}'") == ({"long-literal"} if is_found else set())


def test_a_name_in_many_pieces_is_put_together() -> None:
    pieces = "+".join(repr(letter) for letter in "__globals__")

    assert patterns(f"getattr(f, {pieces})") == {"dunder-walk"}


def test_findings_and_their_details_are_bounded() -> None:
    many = found("\n".join(f"import ctypes.{'x' * 300}{i}" for i in range(50)))

    assert len(many) == code_check.FINDINGS_MAX
    assert all(len(item["detail"]) <= 200 for item in many)
    assert [item["line"] for item in many] == list(range(1, code_check.FINDINGS_MAX + 1))


def test_the_same_thing_on_one_line_is_one_finding() -> None:
    assert len(found("f.__code__, f.__code__")) == 1


def test_guest_and_host_know_the_same_patterns() -> None:
    """The host takes no others: a metric's labels must not be the guest's to invent."""
    assert set(typing.get_args(frames.Pattern)) == set(code_check.PATTERNS)


@pytest.mark.parametrize(
    ("finding", "is_taken"),
    [
        ({"pattern": "ctypes", "line": 0, "detail": ""}, True),
        ({"pattern": "ctypes", "line": (1 << 31) - 1, "detail": "x" * 200}, True),
        ({"pattern": "mine", "line": 1, "detail": ""}, False),
        ({"pattern": "ctypes", "line": 1 << 31, "detail": ""}, False),
        ({"pattern": "ctypes", "line": -1, "detail": ""}, False),
        ({"pattern": "ctypes", "line": 1, "detail": "x" * 201}, False),
    ],
)
def test_the_host_takes_only_what_the_wire_can_carry(
    finding: dict[str, Any], is_taken: bool
) -> None:
    """A finding comes from a worker, and a worker may lie."""
    if is_taken:
        assert msgspec.convert(finding, frames.Finding).line == finding["line"]
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(finding, frames.Finding)


def test_a_refusal_names_every_finding() -> None:
    error = code_check.refusal(found("import ctypes\nimport socket"))

    assert error["type"] == "RefusedError"
    assert "line 1: ctypes (import ctypes)" in error["message"]
    assert "line 2: socket (import socket)" in error["traceback"]
