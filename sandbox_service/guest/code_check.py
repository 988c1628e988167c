"""Notices suspicious patterns in a cell before it runs. An alarm and no wall.

Ordinary code is let through by looking at the names and constants that were compiled; only code
that has a suspicious one is read node by node, to say where and what.
"""

import ast
import types
from collections.abc import Iterator
from typing import Any

FINDINGS_MAX = 20
LITERAL_CHARACTERS_MAX = 50_000
_DETAIL_CHARACTERS_MAX = 200
_FOLDED_DEPTH = 16
"""Nesting of `+` that is looked into: each level is read once for each above it."""

# What an import of a module, or of one inside of it, is.
_MODULES = {
    "ctypes": "ctypes",
    "_ctypes": "ctypes",
    "cffi": "ctypes",
    "socket": "socket",
    "_socket": "socket",
    "ssl": "socket",
    "_ssl": "socket",
    "subprocess": "subprocess",
    "_posixsubprocess": "subprocess",
    "pty": "subprocess",
    "multiprocessing": "multiprocessing",
    "_multiprocessing": "multiprocessing",
    "_thread": "multiprocessing",
    "_host": "host-door",
    "fathom_guest": "host-door",
    "marshal": "serialized-code",
    "_testcapi": "heap-walk",
    "_testinternalcapi": "heap-walk",
}
# What a name, an attribute, or a string that may name one is.
_NAMES = {
    "__subclasses__": "dunder-walk",
    "__globals__": "dunder-walk",
    "__builtins__": "dunder-walk",
    "__code__": "dunder-walk",
    "__closure__": "dunder-walk",
    "__mro__": "dunder-walk",
    "__bases__": "dunder-walk",
    "__getattribute__": "dunder-walk",
    "__loader__": "dunder-walk",
    "gi_frame": "frame-walk",
    "cr_frame": "frame-walk",
    "ag_frame": "frame-walk",
    "tb_frame": "frame-walk",
    "f_back": "frame-walk",
    "f_globals": "frame-walk",
    "f_builtins": "frame-walk",
    "_getframe": "frame-walk",
    "_current_frames": "frame-walk",
    "__cell__": "host-door",
    "_host": "host-door",
    "fathom_guest": "host-door",
    "settrace": "tracing",
    "setprofile": "tracing",
    "get_objects": "heap-walk",
    "get_referrers": "heap-walk",
    "get_referents": "heap-walk",
}
_FORMS = ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")
# What an attribute of a module of this name is.
_ATTRIBUTES = {
    **{("os", name): "subprocess" for name in ("system", "popen", "fork", "forkpty", "kill")},
    **{("os", f"exec{form}"): "subprocess" for form in _FORMS},
    **{("os", f"spawn{form}"): "subprocess" for form in _FORMS},
    ("os", "posix_spawn"): "subprocess",
    ("sys", "modules"): "module-tampering",
}
_RUN_CODE = frozenset({"exec", "eval"})
_PICKLES = frozenset({"pickle", "dill", "cloudpickle"})
_TAKE_NAMES = frozenset({"getattr", "setattr", "hasattr", "delattr", "attrgetter"})
_ALONE = frozenset(_MODULES) | frozenset(_NAMES) | _RUN_CODE | _PICKLES
_TEXTS = frozenset(_MODULES) | frozenset(_NAMES)

PATTERNS = frozenset(
    {*_MODULES.values(), *_NAMES.values(), *_ATTRIBUTES.values(), "long-literal", "built-code"}
)
"""Everything that a finding may be."""


def findings(tree: ast.Module, codes: list[types.CodeType]) -> list[dict[str, Any]]:
    """Return what is suspicious in a cell: pattern, line and detail, in the order of its lines.

    `tree` is the cell as it was written, `codes` what it was compiled to.
    """
    if not any(_is_worth_reading(code) for code in codes):
        return []
    found = {
        (line, pattern, detail[:_DETAIL_CHARACTERS_MAX]): None
        for line, pattern, detail in _suspicions(tree)
    }
    return [
        {"pattern": pattern, "line": line, "detail": detail}
        for line, pattern, detail in sorted(found)[:FINDINGS_MAX]
    ]


def refusal(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return the error of a cell that is refused for its findings: type, message, traceback."""
    places = [f"line {item['line']}: {item['pattern']} ({item['detail']})" for item in found]
    trace = "".join(f"  {place}\n" for place in places)
    message = f"the code check refuses this cell, none of it was run; {places[0]}"
    return {"type": "RefusedError", "message": message, "traceback": f"{message}\n{trace}"}


def _is_worth_reading(code: types.CodeType) -> bool:
    """Tell whether any name or constant in it, or in code within it, can be a finding."""
    names = code.co_names
    if not _ALONE.isdisjoint(names) or not _TAKE_NAMES.isdisjoint(names):
        return True
    if "os" in names or "sys" in names:
        return True
    for name in names:
        if "." in name and not _ALONE.isdisjoint(name.split(".")):
            return True
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            if _is_worth_reading(value):
                return True
        elif isinstance(value, (str, bytes)) and (
            value in _TEXTS or len(value) > LITERAL_CHARACTERS_MAX
        ):
            return True
    return False


def _suspicions(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _imported(node, alias.name, f"import {alias.name}")
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node)
        elif isinstance(node, ast.Attribute):
            yield from _attribute(node)
        elif isinstance(node, ast.Name) and node.id in _NAMES:
            yield node.lineno, _NAMES[node.id], node.id
        elif isinstance(node, ast.Call):
            yield from _call(node)
        elif isinstance(node, (ast.Constant, ast.BinOp)):
            yield from _literal(node)


def _imported(
    node: ast.stmt | ast.expr, module: str, detail: str
) -> Iterator[tuple[int, str, str]]:
    for part in module.split("."):
        if part in _MODULES:
            yield node.lineno, _MODULES[part], detail
            return


def _imported_from(node: ast.ImportFrom) -> Iterator[tuple[int, str, str]]:
    module = node.module or ""
    yield from _imported(node, module, f"from {module} import ...")
    for alias in node.names:
        pattern = _ATTRIBUTES.get((module, alias.name)) or _NAMES.get(alias.name)
        if pattern is not None:
            yield node.lineno, pattern, f"from {module} import {alias.name}"


def _attribute(node: ast.Attribute) -> Iterator[tuple[int, str, str]]:
    if node.attr in _NAMES:
        yield node.lineno, _NAMES[node.attr], f".{node.attr}"
    elif isinstance(node.value, ast.Name) and (node.value.id, node.attr) in _ATTRIBUTES:
        yield node.lineno, _ATTRIBUTES[node.value.id, node.attr], f"{node.value.id}.{node.attr}"


def _call(node: ast.Call) -> Iterator[tuple[int, str, str]]:
    """Find modules and attributes that are given as text, and code that comes from elsewhere."""
    called, arguments = _called(node.func), node.args
    if called in ("__import__", "import_module") and arguments:
        text = _text(arguments[0])
        yield from _imported(node, text or "", f"{called}({text!r})")
    elif called in _TAKE_NAMES and len(arguments) > 1 and isinstance(arguments[0], ast.Name):
        attribute = (arguments[0].id, _text(arguments[1]))
        if attribute in _ATTRIBUTES:
            yield node.lineno, _ATTRIBUTES[attribute], f"{called}({attribute[0]}, ...)"
    elif _is_builtin(node.func, _RUN_CODE) and not _is_literal(arguments):
        yield node.lineno, "built-code", f"{called}(...)"
    elif called in ("loads", "load") and _is_of_pickles(node.func) and _has_literal(arguments):
        yield node.lineno, "serialized-code", f"{called}(...) of a literal"


def _literal(node: ast.Constant | ast.BinOp) -> Iterator[tuple[int, str, str]]:
    text = _text(node)
    if text is not None and len(text) <= _DETAIL_CHARACTERS_MAX:
        for part in text.split("."):
            if part in _NAMES:
                yield node.lineno, _NAMES[part], repr(text)
                return
    value = getattr(node, "value", None)
    if isinstance(value, (str, bytes)) and len(value) > LITERAL_CHARACTERS_MAX:
        yield node.lineno, "long-literal", f"{len(value):,} characters"


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def _is_builtin(function: ast.expr, names: frozenset[str]) -> bool:
    """Tell whether it is one of these builtins, and no method of the same name."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.attr in names and function.value.id == "builtins"
    return isinstance(function, ast.Name) and function.id in names


def _is_literal(arguments: list[ast.expr]) -> bool:
    return bool(arguments) and isinstance(arguments[0], ast.Constant)


def _is_of_pickles(function: ast.expr) -> bool:
    module = function.value if isinstance(function, ast.Attribute) else None
    return isinstance(module, ast.Name) and module.id in _PICKLES


def _has_literal(arguments: list[ast.expr]) -> bool:
    return any(
        isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
        for argument in arguments
        for node in ast.walk(argument)
    )


def _text(node: ast.expr, depth: int = _FOLDED_DEPTH) -> str | None:
    """Return the text that a literal is, or several of them joined by `+`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and depth:
        left, right = _text(node.left, depth - 1), _text(node.right, depth - 1)
        return left + right if left is not None and right is not None else None
    return None
