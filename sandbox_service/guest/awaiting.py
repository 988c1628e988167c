"""Finds the calls of query functions in a cell that are awaited, and lets them wait together.

`llm_query` blocks, so that plain code gets a str. Where a call is awaited, or handed to asyncio,
its name is exchanged for that of a coroutine function; the cell is not changed in any other way.
"""

import ast
import builtins
from collections.abc import Iterable
from typing import Any

from . import event_loop, queries

QUERIES = {function.__name__: function for function in queries.QUESTIONS}
_TAKE_AWAITABLES = frozenset(
    {"gather", "create_task", "ensure_future", "wait_for", "shield", "run_until_complete"}
)
_OF_ASYNCIO = frozenset({"as_completed", "wait", "run"})
"""Other modules have functions of these names."""
_PASS_ON = frozenset({"list", "tuple", "set", "iter", "reversed"})
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp)
_APART = (
    *(ast.With, ast.FunctionDef, ast.ClassDef, ast.Lambda),
    *(*_COMPREHENSIONS, ast.DictComp),
)


def install() -> None:
    """Put the coroutine functions where compiled cells find them: among the builtins."""
    for name, function in QUERIES.items():
        builtins.__dict__[_coroutine_name(name)] = event_loop.awaitable(function)


def let_wait(tree: ast.Module, source: str) -> None:
    """Exchange, in place, the names of the query functions that a cell awaits."""
    if not any(name in source for name in QUERIES) or (
        "await" not in source and "async" not in source
    ):
        return
    names = frozenset(QUERIES) - _bound_names(tree)
    awaited = _AwaitedCalls(tree, names)
    for name in awaited.names:
        name.id = _coroutine_name(name.id)
    _Awaits(names).visit(tree)


def _coroutine_name(name: str) -> str:
    return f"<awaitable {name}>"


def _bound_names(tree: ast.Module) -> set[str]:
    """Return the names that a cell gives a meaning of its own."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name)
    return bound


class _AwaitedCalls:
    """The names of query functions in calls whose value goes to `await` or asyncio alone."""

    def __init__(self, tree: ast.Module, queries: frozenset[str]) -> None:
        self.names: list[ast.Name] = []
        """Each as it stands in the tree."""
        self._queries = queries
        self._awaited_loads: dict[str, int] = {}
        nodes = list(ast.walk(tree))
        for node in nodes:
            for value in _awaited_values(node):
                self._follow(value)
        self._follow_variables(nodes)

    def _follow(self, node: ast.expr) -> None:
        """Go from a value that is awaited to the calls that it is made of."""
        if isinstance(node, ast.Call):
            self._follow_call(node)
        elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            for element in node.elts:
                self._follow(element)
        elif isinstance(node, ast.Starred):
            self._follow(node.value)
        elif isinstance(node, ast.IfExp):
            self._follow(node.body)
            self._follow(node.orelse)
        elif isinstance(node, ast.BinOp):
            self._follow(node.left)
            self._follow(node.right)
        elif isinstance(node, _COMPREHENSIONS):
            self._follow(node.elt)
        elif isinstance(node, ast.DictComp):
            self._follow(node.value)
        elif isinstance(node, ast.Name):
            self._awaited_loads[node.id] = self._awaited_loads.get(node.id, 0) + 1

    def _follow_call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Name) and function.id in self._queries:
            self.names.append(function)
        elif isinstance(function, ast.Name) and function.id == "map" and len(node.args) > 1:
            query = node.args[0]
            if isinstance(query, ast.Name) and query.id in self._queries:
                self.names.append(query)
        elif isinstance(function, ast.Name) and function.id in _PASS_ON:
            for argument in node.args:
                self._follow(argument)
        elif isinstance(function, ast.Attribute) and function.attr == "values":
            self._follow(function.value)

    def _follow_variables(self, nodes: Iterable[ast.AST]) -> None:
        """Go on from variables that hold nothing but what is awaited later in the cell."""
        loads: dict[str, int] = {}
        harmless: dict[str, int] = {}
        made_of: dict[str, list[ast.expr]] = {}
        for node in nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                loads[node.id] = loads.get(node.id, 0) + 1
            for name in _harmless_uses(node):
                harmless[name] = harmless.get(name, 0) + 1
            for name, value in _added_values(node):
                made_of.setdefault(name, []).append(value)
        for name, count in list(self._awaited_loads.items()):
            if count + harmless.get(name, 0) == loads.get(name, 0):
                for value in made_of.get(name, ()):
                    self._follow(value)


def _awaited_values(node: ast.AST) -> Iterable[ast.expr]:
    """Return what a node awaits, or hands to asyncio to be awaited."""
    if isinstance(node, ast.Await):
        return [node.value]
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute):
            is_asyncio = isinstance(function.value, ast.Name) and function.value.id == "asyncio"
            if function.attr in _TAKE_AWAITABLES or (is_asyncio and function.attr in _OF_ASYNCIO):
                return node.args
        elif isinstance(function, ast.Name) and function.id in _TAKE_AWAITABLES:
            return node.args
    return ()


def _harmless_uses(node: ast.AST) -> Iterable[str]:
    """Name the variables whose content a node does not look at: `x.append`, `len(x)`."""
    if isinstance(node, ast.Attribute) and node.attr in ("append", "extend", "keys"):
        value = node.value
        return [value.id] if isinstance(value, ast.Name) else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return [argument.id for argument in node.args if isinstance(argument, ast.Name)]
    return ()


def _added_values(node: ast.AST) -> Iterable[tuple[str, ast.expr]]:
    """Return what a node puts into which variables."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            inner = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(inner, ast.Name):
                yield inner.id, node.value
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and isinstance(node.target, ast.Name):
        if node.value is not None:
            yield node.target.id, node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if node.func.attr in ("append", "extend") and isinstance(owner, ast.Name) and node.args:
            yield owner.id, node.args[0]


class _Awaits(ast.NodeTransformer):
    """Makes plain calls in an `async def` give way to other tasks, as awaited ones do.

    Left alone are those in comprehensions, in functions within it, and in a plain `with`, which
    may hold a lock.
    """

    def __init__(self, queries: frozenset[str]) -> None:
        self._queries = queries
        self._is_async = False

    def visit(self, node: ast.AST) -> Any:
        """Go on into a node, noting whether a call may give way there."""
        before = self._is_async
        if isinstance(node, ast.AsyncFunctionDef):
            self._is_async = True
        elif isinstance(node, _APART):
            self._is_async = False
        visited = super().visit(node)
        self._is_async = before
        return visited

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Await a call of a query function."""
        self.generic_visit(node)
        function = node.func
        if self._is_async and isinstance(function, ast.Name) and function.id in self._queries:
            function.id = _coroutine_name(function.id)
            return ast.copy_location(ast.Await(node), node)
        return node
