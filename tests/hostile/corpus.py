"""The hostile guests: one file each, whose header says what is to become of it.

A guest is a cell. Comments at its top are `# Key: value`; its docstring says what it attacks.
Guests run inside of a session and are never imported.

- Expect: the ending, and the name of the exception's class where there is one. A guest that is
  to be refused something asserts so itself, and completes.
- Then: `kept` (what the cell did stays), `restored` (the session is as before the cell), `lost`
  (no cell begins any more; the caller opens another session) or `spent` (as restored, and every
  later cell ends in the same way at once).
- Limits: those of `_LIMITS` that differ from what is there, with their units.
- Context: `lazy` where there is to be a text, mounted by reference.
- Profile: the session's, `base` if there is none.
- Finds: what the check of the code is to notice, among others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "guests"
_HEADER = re.compile(r"# (Expect|Then|Limits|Context|Profile|Finds): (.+)")
_FATES = ("kept", "restored", "lost", "spent")
_LIMITS: Mapping[str, float] = {
    "fuel": 20_000_000_000,
    "time_s": 20,
    "memory_mib": 192,
    "output_bytes": 1 << 20,
    "sub_calls": 1_000,
    "session_fuel": 100_000_000_000,
    "session_time_s": 100,
}


@dataclass(frozen=True, kw_only=True)
class HostileGuest:
    """One attack and its expected end."""

    name: str
    """Name of its file."""
    code: str
    """The cell."""
    ending: str
    """How it ends, in the words of the contract."""
    error_type: str
    """Class of the exception that ends it, or empty."""
    fate: str
    """What becomes of its session's state."""
    limits: Mapping[str, float]
    """Limits of its session, in the units that their names say."""
    has_context: bool
    """Whether it is given a lazy text."""
    profile: str
    """Profile of its session."""
    finds: frozenset[str]
    """Patterns that the check of its code must notice."""


def hostile_guests() -> list[HostileGuest]:
    """Return every guest, by name; raises ValueError for a header that says too little."""
    return [_read(path) for path in sorted(_FOLDER.glob("*.py"))]


def _read(path: Path) -> HostileGuest:
    code = path.read_text(encoding="utf-8")
    header = dict(_HEADER.findall(code.partition('"""')[0]))
    ending, _, error_type = header.get("Expect", "").partition(" ")
    limits = dict(_LIMITS)
    for setting in header.get("Limits", "").split():
        name, _, value = setting.partition("=")
        if name not in limits:
            raise ValueError(f"{path.name}: no limit is called {name!r}")
        limits[name] = float(value)
    if not ending or header.get("Then") not in _FATES:
        raise ValueError(f"{path.name}: its header does not say how it ends")
    return HostileGuest(
        name=path.stem,
        code=code,
        ending=ending,
        error_type=error_type,
        fate=header["Then"],
        limits=limits,
        has_context=header.get("Context") == "lazy",
        profile=header.get("Profile", "base"),
        finds=frozenset(header.get("Finds", "").split()),
    )
