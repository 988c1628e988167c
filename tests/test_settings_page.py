"""docs/configuration.md holds each setting as the code has it, and no other."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common.config import Secret

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "orchestrator.config:OrchestratorConfig": "FATHOM_ORCHESTRATOR_",
    "sandbox_service.config:SandboxConfig": "FATHOM_SANDBOX_",
    "llm_gateway.config:GatewayConfig": "FATHOM_GATEWAY_",
}


@pytest.mark.parametrize(("spec", "prefix"), SETTINGS.items())
def test_the_page_has_every_setting_with_its_default_and_its_prose(
    spec: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators read the page, and not the code: a default that is wrong there misleads them."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    settings = config_class(spec)
    prose = prose_of(settings)

    stated = {
        f"{prefix}{field.name.upper()}": (form(default_of(field)), prose[field.name])
        for field in dataclasses.fields(settings)
    }

    assert documented(prefix) == stated


def config_class(spec: str) -> type[Any]:
    module, _, name = spec.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def documented(prefix: str) -> dict[str, tuple[str, str]]:
    """Return default and prose of the settings on the page, without the marks of code."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(rf"^\| `({prefix}[A-Z_0-9]+)` \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    return {name: (default.strip("`"), unmarked(prose)) for name, default, prose in rows}


def prose_of(settings: type[Any]) -> dict[str, str]:
    """Return the lines that follow the fields of a class, its bases' included; none is missing."""
    found: dict[str, str] = {}
    for each in reversed(settings.__mro__[:-1]):
        source = Path(str(importlib.import_module(each.__module__).__file__)).read_text()
        body = next(
            node.body
            for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and node.name == each.__name__
        )
        for field, after in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(field.target)] = unmarked(ast.literal_eval(after.value))
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory()


def form(default: object) -> str:
    """Return a default as the page writes it."""
    if isinstance(default, Secret):
        default = default.reveal()
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Path):
        default = str(default).replace(str(Path.home()), "~", 1)
    return "none" if default in (None, "") else str(default)


def unmarked(prose: str) -> str:
    """Return prose without marks and capitals: a field of the code is a variable on the page."""
    return " ".join(prose.replace("`", "").split()).lower()
