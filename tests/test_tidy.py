"""Rules about the source itself: who imports whom, how long things are, what is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("orchestrator", "sandbox_service", "llm_gateway")
CLIENTS = ("fathom_client", "fathom_demo")
PACKAGES = {
    "common": ROOT / "common",
    **{name: ROOT / name for name in SERVICES},
    **{name: ROOT / "clients" / "python" / name for name in CLIENTS},
}
MAY_IMPORT = {
    "common": {"fathom"},
    **{name: {"fathom", "common"} for name in SERVICES},
    "fathom_client": {"fathom", "fathom_demo"},
    "fathom_demo": set[str](),
}
"""Packages of ours that each may import, besides itself. Services meet only on the wire."""
SHARED_WITH_WORKERS = {
    *("engine", "frames", "guest_build", "guest_memory", "jail", "limits", "profiles"),
    *("sparse_files", "texts"),
}
"""Modules of the sandbox service that run on both sides of the wall around workers."""
MODULE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70
FORBIDDEN_STEMS = {"utils", "util", "helpers", "helper", "misc", "core", "manager"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules(package: str) -> Iterator[Path]:
    return (path for path in PACKAGES[package].rglob("*.py"))


def every_source() -> list[Path]:
    folders = [*PACKAGES.values(), ROOT / "tests", ROOT / "bench"]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a module imports, also inside functions."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_arrows_allow(package: str) -> None:
    """Services meet only on the wire; the client needs no service's code."""
    ours = {*PACKAGES, "fathom", "tests", "bench"}
    allowed = MAY_IMPORT[package] | {package}

    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imported(path) & ours - allowed
    }

    assert not wrong


def test_supervisor_and_worker_meet_in_frames_alone() -> None:
    """Who asks what untrusted code could reach reads one folder, and what it shares."""
    sandbox = PACKAGES["sandbox_service"]
    crossing = set()
    for path in modules("sandbox_service"):
        runs_in_worker = path.is_relative_to(sandbox / "worker")
        is_shared = path.relative_to(sandbox).parts[0].removesuffix(".py") in SHARED_WITH_WORKERS
        for name in own_modules_imported(path, "sandbox_service"):
            if name == "worker" and not runs_in_worker:
                crossing.add(f"{path.relative_to(ROOT)} imports a worker's module")
            elif name not in {"worker", *SHARED_WITH_WORKERS} and (runs_in_worker or is_shared):
                crossing.add(f"{path.relative_to(ROOT)} imports {name}")

    assert not crossing


def own_modules_imported(path: Path, package: str) -> set[str]:
    """Names, below a package, of its modules and folders that one of them imports."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == package:
                names |= {alias.name for alias in node.names}
            elif node.module.startswith(f"{package}."):
                names.add(node.module.split(".")[1])
    return names


def test_no_module_is_longer_than_can_be_read() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in every_source()}

    assert not {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MODULE_LINES_MAX}


def test_a_function_fits_on_a_screen() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in every_source()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]

    assert not wrong


def test_a_module_is_named_for_a_noun() -> None:
    names = [path for path in every_source() if path.stem in FORBIDDEN_STEMS]

    assert not names


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in every_source()
        if path.read_text().strip() and not ast.get_docstring(parsed(path))
    ]

    assert not silent


def test_every_public_name_of_the_packages_has_a_docstring() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for package in PACKAGES
        for path in modules(package)
        for node in public_definitions(parsed(path))
        if not ast.get_docstring(node)
    ]

    assert not silent


def public_definitions(
    module: ast.Module,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a module; methods of servicers are told by the protos."""
    for node in module.body:
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("service", SERVICES)
def test_domain_modules_do_not_know_grpc(service: str) -> None:
    """Wire in, domain call, wire out: only the edges know what the wire is."""
    edges = {
        path for path in modules(service) if "grpc" in imported(path) and not is_edge(path.stem)
    }
    wrong = {
        str(path.relative_to(ROOT))
        for path in edges
        if any(
            isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_pb2_grpc")
            for node in ast.walk(parsed(path))
        )
    }

    assert not wrong


def is_edge(stem: str) -> bool:
    """Servicers and the clients of other services are edges."""
    return stem == "__main__" or stem.endswith(("servicer", "client", "adapter"))


def test_the_map_names_only_files_that_exist() -> None:
    """ARCHITECTURE.md follows a run through the files by name: one that is not there misleads."""
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())
    there = {f"/{path.relative_to(ROOT)}" for path in tracked_files()}

    lost = {name for name in named if not any(path.endswith(f"/{name}") for path in there)}

    assert named
    assert not lost


def test_every_package_is_in_the_wheel() -> None:
    """A flat package that the build forgets works in the checkout and nowhere else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packaged = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

    expected = {str(path.relative_to(ROOT)) for path in PACKAGES.values()} | {"protos/gen/fathom"}
    assert set(packaged) == expected


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def test_no_file_is_larger_than_a_repository_should_hold() -> None:
    assert not [path for path in tracked_files() if path.stat().st_size > 1 << 20]


def test_lock_files_pin_by_hash_and_name_no_address() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        pinned = re.findall(r"^[a-z0-9].*==.*$", text, re.MULTILINE)
        assert pinned
        assert all(line.rstrip().endswith("\\") for line in pinned), path


def test_node_lock_files_name_no_address() -> None:
    locks = [path for path in tracked_files() if path.name == "package-lock.json"]

    assert locks
    assert not [path for path in locks if '"resolved"' in path.read_text()]


def test_tests_do_not_sleep_or_skip() -> None:
    banned = re.compile(r"time\.sleep\(|asyncio\.sleep\([1-9]|mark\.(skip|xfail)|pytest\.skip\(")
    here = Path(__file__)
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path != here and banned.search(path.read_text())
    ]

    assert not wrong
