"""Address files: how a process that took a free port tells those who started it."""

from __future__ import annotations

import os
from pathlib import Path


def write_address(path: Path, address: str) -> None:
    """Write `address` and a line feed to `path` in one step: a reader sees all of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(address + "\n")
    partial.replace(path)
