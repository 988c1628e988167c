"""What several tables of a profile's file hold alike: names of files beside it, and of tenants."""

from __future__ import annotations

import re
from pathlib import Path

from common.toml_table import Table

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FILE_BYTES_MAX = 256 << 10


def named_text(table: Table, folder: Path, key: str) -> str:
    """Return the content of the file that a key names, which stands in the profiles' folder; empty
    where the key is missing. Raises ConfigError."""
    name = table.text(key, "")
    if not name:
        return ""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        table.fail(key, "must name a file within the folder of the profile")
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError:
        table.fail(key, f"{name} cannot be read")
    except UnicodeDecodeError:
        table.fail(key, f"{name} is not UTF-8")
    if len(data) > _FILE_BYTES_MAX:
        table.fail(key, f"{name} has more than {_FILE_BYTES_MAX} bytes")
    if not text.strip():
        table.fail(key, f"{name} is empty")
    return text.strip()


def read_tenants(table: Table) -> tuple[str, ...]:
    """Take a list of tenants; none where the key is missing."""
    values = table.pop("tenants", [])
    if not isinstance(values, list) or not all(
        isinstance(value, str) and _TENANT.fullmatch(value) for value in values
    ):
        table.fail("tenants", "must be a list of names of tenants")
    return tuple(dict.fromkeys(values))
