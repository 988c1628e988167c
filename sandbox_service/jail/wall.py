"""What is said of a wall: its name, whether it stands, and why it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta


@dataclass(frozen=True)
class Wall:
    """One wall around a process."""

    name: Annotated[str, Meta(max_length=32)]
    """Such as `landlock`."""
    raised: bool
    """Whether it stands."""
    detail: Annotated[str, Meta(max_length=500)] = ""
    """Why it does not stand; empty where it does."""


class WallError(Exception):
    """A wall cannot be raised here; the message says why."""
