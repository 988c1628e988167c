"""Runs one cell in the session's namespace and tells the host how it ended.

The semantics of a Python REPL: the last expression is echoed, `await` works at top level,
whatever a cell did before it failed stays done.
"""

import __future__

import ast
import asyncio
import builtins
import contextlib
import inspect
import linecache
import random
import sys
import types
from typing import Any

import __main__

from . import (
    awaiting,
    child_contexts,
    child_runs,
    code_check,
    contexts,
    event_loop,
    host,
    host_tools,
    streams,
    sub_calls,
    tracebacks,
)
from .answers import Answers
from .text_functions import TextFunctions

_VARIABLES_MAX = 200
_ROOM_BYTES = 512 << 10
_FRAMES_MIN = 200
"""Frames that the runtime itself is sure to do with."""
_FUTURE_FLAGS = sum(
    getattr(__future__, name).compiler_flag for name in __future__.all_feature_names
)


class Session:
    """What stays from cell to cell besides the namespace itself."""

    def __init__(self) -> None:
        self.namespace = __main__.__dict__
        self.answers = Answers(self.namespace)
        self.loop = event_loop.CellLoop()
        self.answers.provided = {
            "FINAL": self.answers.final,
            "FINAL_VAR": self.answers.final_var,
            "SHOW_VARS": self.answers.show_vars,
            "llm_query": sub_calls.llm_query,
            "llm_query_batched": sub_calls.llm_query_batched,
            "rlm_query": child_runs.rlm_query,
            "rlm_query_batched": child_runs.rlm_query_batched,
            "LLMQueryError": sub_calls.LLMQueryError,
            "LimitExceededError": sub_calls.LimitExceededError,
            "ChildRunError": child_runs.ChildRunError,
            "call_tool": host_tools.call_tool,
            "HostToolError": host_tools.HostToolError,
            "HostToolRefusedError": host_tools.HostToolRefusedError,
            "SchemaMismatchError": sub_calls.SchemaMismatchError,
            "FailedQuery": sub_calls.FailedQuery,
        }
        self._restored = dict(self.answers.provided)
        """Names that come back with each cell: a model that once wrote `FINAL = ...` by mistake
        can still answer."""
        self.answers.provided |= TextFunctions(self.namespace).provided()
        self.answers.provided |= self.answers.citations.provided()
        self.answers.provided["part"] = child_contexts.part
        self.namespace.update(self.answers.provided)
        self.answers.provided["len"] = contexts.length

    def start(self) -> None:
        """Begin a session on the warm image: fresh randomness, then the contexts."""
        random.seed()
        if "numpy.random" in sys.modules:  # of a profile: else its image's sessions all draw alike
            sys.modules["numpy.random"].seed()
        try:
            contexts.load(self.namespace)
        except Exception as error:  # the host decides what it means
            _report("raised", tracebacks.described(error))
        else:
            _report("completed")

    def run(self) -> None:
        """Fetch the cell to run from the host, run it, and report how it ended."""
        linecache.cache.pop(sys._getframe(1).f_code.co_filename, None)  # noqa: SLF001
        cell = host.ask({"call": "cell"})
        host.limit_values(cell["value_bytes_max"])
        self.answers.given = None
        self.answers.citations.begin(cell["run"])
        self.namespace.update(self._restored)
        ending, error = self._outcome(
            cell["source"], f"{tracebacks.CELL_PREFIX}{cell['number']}>", cell["check"]
        )
        if sys.getrecursionlimit() < _FRAMES_MIN:  # a cell has lowered it: too low to go on
            sys.setrecursionlimit(_FRAMES_MIN)
        _flush()
        streams.reopen()
        if error is not None:
            print(error["traceback"], end="", file=sys.__stderr__)
        variables = self.answers.described(_VARIABLES_MAX) if cell["report"] else []
        try:
            is_tight = _report(ending, error, self.answers.given, variables)
            has_room = not is_tight or _has_room()
        except MemoryError:
            has_room = False
        if not has_room:
            host.tell_no_room()

    def _outcome(self, source: str, filename: str, check: str) -> tuple[str, dict[str, str] | None]:
        try:
            tree = _parsed(source, filename)
            codes = _compiled(tree, filename)
            findings = code_check.findings(tree, codes) if check != "off" else []
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            _show_line(error, source)
            return "syntax_error", tracebacks.described(error)
        if findings:
            host.ask({"call": "findings", "findings": findings})
            if check == "refuse":
                return "refused", code_check.refusal(findings)
        lines = source.splitlines(keepends=True)
        linecache.cache[filename] = (len(source), None, lines, filename)
        try:
            self._execute(codes)
        except SystemExit as error:
            return "exited", tracebacks.described(error) | {"traceback": ""}
        except BaseException as error:  # whatever it is, the session goes on
            return "raised", tracebacks.described(error)
        return "completed", None

    def _execute(self, codes: list[types.CodeType]) -> None:
        value = None
        if self.loop.is_closed():  # by a cell that tidied up
            self.loop = event_loop.CellLoop()
        asyncio.set_event_loop(self.loop)
        for code in codes:
            value = eval(code, self.namespace)  # noqa: S307  # this is what a cell is for
            if code.co_flags & inspect.CO_COROUTINE:
                value = self.loop.run_until_complete(value)
        # Statements give None, so what is left is the value of a last expression.
        if value is not None:
            _echo(value)


def _report(
    ending: str,
    error: dict[str, str] | None = None,
    final: dict[str, Any] | None = None,
    variables: list[dict[str, Any]] | None = None,
) -> bool:
    """Tell the host how it ended; returns whether the memory can hardly grow any more."""
    return bool(
        host.ask(
            {
                "call": "ended",
                "ending": ending,
                "error": error,
                "final": final,
                "variables": variables or [],
            }
        )
    )


def _show_line(error: Exception, source: str) -> None:
    """Give a syntax error the line that it is in, where the compiler does not know it."""
    if isinstance(error, SyntaxError) and error.text is None and error.lineno:
        lines = source.splitlines()
        error.text = lines[error.lineno - 1] if error.lineno <= len(lines) else None


def _parsed(source: str, filename: str) -> ast.Module:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    tree: ast.Module = compile(source, filename, "exec", flags, dont_inherit=True)
    awaiting.let_wait(tree, source)
    return tree


def _compiled(tree: ast.Module, filename: str) -> list[types.CodeType]:
    """Compile a cell; a last expression becomes a code object of its own, to be echoed."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return [compile(tree, filename, "exec", flags, dont_inherit=True)]
    statements = ast.Module(tree.body[:-1], [])
    body = compile(statements, filename, "exec", flags, dont_inherit=True)
    future = body.co_flags & _FUTURE_FLAGS
    expression = ast.Expression(last.value)
    echoed = compile(expression, filename, "eval", flags | future, dont_inherit=True)
    # Its frames still read as the module's in a traceback.
    echoed = echoed.replace(co_name="<module>", co_qualname="<module>")
    return [body, echoed] if statements.body else [echoed]


def _echo(value: Any) -> None:
    builtins._ = value  # type: ignore[attr-defined]  # as in Python's own REPL
    if type(value) in (str, sub_calls.Answer, child_runs.ChildAnswer):
        print(streams.shown(value, is_literal=True))
    else:
        print(repr(value))


def _has_room() -> bool:
    """Tell whether the next cell will have the memory that it takes to begin."""
    try:
        bytearray(_ROOM_BYTES)
    except MemoryError:
        return False
    return True


def _flush() -> None:
    """Send what waits in the streams, whatever a cell has put in their place."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
