"""Generate the Python stubs under protos/gen from the .proto files.

`python protos/generate.py` rewrites them; `--check` writes nothing and fails when they differ.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
GENERATED = PROTOS / "gen"
THIRD_PARTY = PROTOS.parent / "third_party" / "googleapis"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def generate(out: Path) -> None:
    """Write stubs and their types for every contract into `out`, a folder that exists."""
    sources = sorted(PROTOS.glob("fathom/**/*.proto"))
    services = [path for path in sources if path.name.endswith("_service.proto")]
    _run_protoc([f"--python_out={out}", f"--mypy_out=quiet:{out}"], sources)
    _run_protoc([f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"], services)


def _run_protoc(outputs: list[str], sources: Iterable[Path]) -> None:
    includes = [f"-I{path}" for path in (PROTOS, THIRD_PARTY, WELL_KNOWN)]
    names = [str(path.relative_to(PROTOS)) for path in sources]
    if protoc.main(["protoc", *includes, *outputs, *names]) != 0:
        raise SystemExit("protoc failed")


def differences(left: Path, right: Path) -> list[str]:
    """Return the relative paths of files that are not equal in both folders."""
    names = {path.relative_to(root) for root in (left, right) for path in _files(root)}
    return sorted(
        str(name)
        for name in names
        if not (left / name).is_file()
        or not (right / name).is_file()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def _files(root: Path) -> Iterable[Path]:
    return (path for path in root.rglob("*.py*") if path.suffix in {".py", ".pyi"})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the stubs are not current")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        if check:
            stale = differences(fresh, GENERATED)
            if stale:
                sys.exit("not current, run `make protos`: " + ", ".join(stale))
            return
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)


if __name__ == "__main__":
    main()
