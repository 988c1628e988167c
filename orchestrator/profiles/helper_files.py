"""Helpers: Python sources of a profile, looked at without running them. They run in sessions only,
behind the same walls as the code of models.
"""

from __future__ import annotations

import ast
from pathlib import Path

from common.toml_table import Table
from orchestrator.profiles.named_files import named_text
from orchestrator.profiles.profile import Helper

_KINDS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read_helper(table: Table, folder: Path) -> Helper:
    """Return the helper that a table names by `file`; raises ConfigError."""
    name = table.text("file")
    source = named_text(Table(str(folder), {"file": name}), folder, "file")
    table.end()
    try:
        tree = ast.parse(source, name)
    except (SyntaxError, ValueError) as error:
        table.fail("file", f"{name} is no Python source: {error}")
    provides = {
        _called(node): (ast.get_docstring(node) or "").partition("\n")[0]
        for node in tree.body
        if isinstance(node, _KINDS) and not node.name.startswith("_")
    }
    if not provides:
        table.fail("file", f"{name} has no public function or class")
    for called, about in provides.items():
        if not about:
            table.fail("file", f"{name}: {called} has no docstring, which is what models are told")
    return Helper(name=name, source=source, provides=provides)


def _called(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """Return a name with its parameters, without annotations."""
    if isinstance(node, ast.ClassDef):
        return node.name
    arguments = node.args
    for each in [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        *filter(None, (arguments.vararg, arguments.kwarg)),
    ]:
        each.annotation = None
    return f"{node.name}({ast.unparse(arguments)})"
