"""Runs one cell in the session's namespace and tells the host how it ended.

The semantics of a Python REPL: the last expression is echoed, `await` works at top level,
whatever a cell did before it failed stays done.
"""

import __future__

import ast
import builtins
import contextlib
import inspect
import linecache
import random
import sys
import types
from typing import Any

import __main__

from . import contexts, event_loop, host, streams, sub_calls, tracebacks
from .answers import Answers

_ECHO_CHARACTERS_MAX = 1_000_000
_VARIABLES_MAX = 200
_ROOM_BYTES = 512 << 10
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
            "rlm_query": sub_calls.rlm_query,
            "rlm_query_batched": sub_calls.rlm_query_batched,
            "LLMQueryError": sub_calls.LLMQueryError,
            "LimitExceededError": sub_calls.LimitExceededError,
            "FailedQuery": sub_calls.FailedQuery,
        }
        self.namespace.update(self.answers.provided)

    def start(self) -> None:
        """Begin a session on the warm image: fresh randomness, then the contexts."""
        random.seed()
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
        self.answers.given = None
        # Provided names come back with each cell: a model that once wrote `FINAL = ...` by
        # mistake can still answer.
        self.namespace.update(self.answers.provided)
        ending, error = self._outcome(cell["source"], f"{tracebacks.CELL_PREFIX}{cell['number']}>")
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

    def _outcome(self, source: str, filename: str) -> tuple[str, dict[str, str] | None]:
        try:
            codes = _compiled(source, filename)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            return "syntax_error", tracebacks.described(error)
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


def _compiled(source: str, filename: str) -> list[types.CodeType]:
    """Compile a cell; a last expression becomes a code object of its own, to be echoed."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(source, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, filename, "exec", flags, dont_inherit=True)
    if not isinstance(last, ast.Expr):
        return [body]
    future = body.co_flags & _FUTURE_FLAGS
    expression = ast.Expression(last.value)
    echoed = compile(expression, filename, "eval", flags | future, dont_inherit=True)
    # Its frames still read as the module's in a traceback.
    echoed = echoed.replace(co_name="<module>", co_qualname="<module>")
    return [body, echoed] if tree.body else [echoed]


def _echo(value: Any) -> None:
    builtins._ = value  # type: ignore[attr-defined]  # as in Python's own REPL
    if type(value) is str and len(value) > _ECHO_CHARACTERS_MAX:
        text = repr(value[:_ECHO_CHARACTERS_MAX])
        print(f"{text}... ({len(value):,} characters)")
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
