"""Functions that give way to others where they ask a sub-model: what threads would do.

A function of a cell that reaches a query function is compiled once more, as a generator that
yields its questions. Where that is not sure to mean the same, there is none, and the function
runs as it is written.
"""

import ast
import builtins
import functools
import inspect
import linecache
import types
from collections.abc import Callable, Generator
from typing import Any

from .queries import QUESTIONS
from .questions import Question
from .tracebacks import CELL_PREFIX

Steps = Generator[Question, Any, Any]
IN_STEPS = "<in steps>"
"""Name that the compiled generators find `in_steps` under, among the builtins."""
_PARSE_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
_NO_PLAIN_FUNCTION = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_LEFT_ALONE = (
    *(ast.With, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


def steps_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Steps | None:
    """Return a call as a generator of its questions; None for one that asks none, or may not be
    interrupted. Raises what the call raises for wrong arguments."""
    if isinstance(function, functools.partial):
        return steps_of(function.func, (*function.args, *args), function.keywords | kwargs)
    if isinstance(function, types.MethodType):
        return steps_of(function.__func__, (function.__self__, *args), kwargs)
    if not isinstance(function, types.FunctionType):
        return None
    if function in QUESTIONS:
        return _asking(QUESTIONS[function](*args, **kwargs))
    if not _reaches_query(function, set()):
        return None
    code = _stepwise(function.__code__)
    if code is None:
        return None
    twin = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    steps: Steps = twin(*args, **kwargs)
    return steps


def in_steps(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Steps:
    """Call a function from within a generator of questions, passing its questions on."""
    steps = steps_of(function, args, kwargs)
    if steps is None:
        return function(*args, **kwargs)
    return (yield from steps)


def _asking(question: Question) -> Steps:
    return (yield question)


def _reaches_query(function: types.FunctionType, seen: set[types.FunctionType]) -> bool:
    """Tell whether a plain function of a cell calls a query function, itself or by others."""
    code = function.__code__
    if function in seen or code.co_flags & _NO_PLAIN_FUNCTION:
        return False
    names = {name for part in (code, *_codes_in(code)) for name in part.co_names}
    # Whoever takes a lock by hand may hold it while it asks: who comes next would wait for ever.
    if not code.co_filename.startswith(CELL_PREFIX) or "acquire" in names:
        return False
    seen.add(function)
    named = [function.__globals__.get(name) for name in names]
    for cell in function.__closure__ or ():
        try:
            named.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    return any(
        value in QUESTIONS or _reaches_query(value, seen)
        for value in named
        if isinstance(value, types.FunctionType)
    )


@functools.lru_cache(maxsize=256)
def _stepwise(code: types.CodeType) -> types.CodeType | None:
    """Compile a function's code as a generator; None where its source cannot be told for sure."""
    source = "".join(linecache.getlines(code.co_filename))
    flags = code.co_flags & _future_flags()
    try:
        tree = compile(source, code.co_filename, "exec", _PARSE_FLAGS | flags, dont_inherit=True)
        nodes = [node for node in ast.walk(tree) if _is_source(node, code)]
        if len(nodes) != 1:
            return None
        _give_way(nodes[0])
        flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        module = compile(tree, code.co_filename, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):  # the source is not the cell's any more
        return None
    found = [twin for twin in _codes_in(module) if _is_twin(twin, code)]
    return found[0] if len(found) == 1 else None


def _future_flags() -> int:
    import __future__

    names = __future__.all_feature_names
    return sum(getattr(__future__, name).compiler_flag for name in names)


def _is_source(node: ast.AST, code: types.CodeType) -> bool:
    if isinstance(node, ast.FunctionDef):
        first = min((item.lineno for item in node.decorator_list), default=node.lineno)
        return (node.name, first) == (code.co_name, code.co_firstlineno)
    if isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
        body = node.body
        place = (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset)
        return node.lineno == code.co_firstlineno and place in set(code.co_positions())
    return False


def _is_twin(twin: types.CodeType, code: types.CodeType) -> bool:
    return bool(
        twin.co_flags & inspect.CO_GENERATOR
        and (twin.co_name, twin.co_firstlineno) == (code.co_name, code.co_firstlineno)
        and twin.co_freevars == code.co_freevars
    )


def _codes_in(code: types.CodeType) -> list[types.CodeType]:
    inner = [value for value in code.co_consts if isinstance(value, types.CodeType)]
    return inner + [deeper for value in inner for deeper in _codes_in(value)]


def _give_way(node: ast.AST) -> None:
    """Turn each call of a function, in place, into one that passes its questions on."""
    rewriter = _GivesWay()
    if isinstance(node, ast.Lambda):
        node.body = rewriter.visit(node.body)
    elif isinstance(node, ast.FunctionDef):
        node.body = [rewriter.visit(statement) for statement in node.body]
        # Also where all calls are left alone it is to be a generator.
        never = ast.parse("if False: yield").body[0]
        node.body.append(ast.copy_location(never, node.body[-1]))
    ast.fix_missing_locations(node)


class _GivesWay(ast.NodeTransformer):
    """Rewrites calls by name; what may hold a lock, or must not yield, stays as it is."""

    def visit(self, node: ast.AST) -> Any:
        """Go on into a node unless it is to stay as it is."""
        return node if isinstance(node, _LEFT_ALONE) else super().visit(node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Put `in_steps` before a call of a name."""
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or hasattr(builtins, node.func.id):
            return node
        caller = ast.copy_location(ast.Name(IN_STEPS, ast.Load()), node.func)
        call = ast.Call(caller, [node.func, *node.args], node.keywords)
        return ast.copy_location(ast.YieldFrom(ast.copy_location(call, node)), node)
