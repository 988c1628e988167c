"""Profiles read from a folder: a TOML file each, and the texts, schemas and Python sources that it
names beside it. What is wrong is a ConfigError that says in which file, at which key.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from common.config import ConfigError
from common.toml_table import Table
from orchestrator.profiles.helper_files import read_helper
from orchestrator.profiles.named_files import named_text, read_tenants
from orchestrator.profiles.profile import Profile, ProfilePrompts
from orchestrator.profiles.tool_tables import check_schema, read_tool
from orchestrator.runs.spec import DIRECT_TOKENS_MAX

GUESTS = ("base", "numpy", "pandas")
SYSTEM_FIELDS = frozenset({"window", "chunk_characters", "children"})
"""What a replacement of the system message may have filled in."""
_NAME = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,31}")
_HELPERS_MAX = 20
_TOOLS_MAX = 50
_COUNTS = (
    *("turns_max", "sub_calls_max", "tokens_max"),
    *("depth_max", "children_live_max"),
)
_USD_NANOS = 1_000_000_000


def read_profiles(folder: Path) -> dict[str, Profile]:
    """Return the profiles of a folder by name, without hidden files; raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"profiles_folder: {folder} is no folder")
    files = [file for file in sorted(folder.glob("*.toml")) if not file.name.startswith(".")]
    return {file.stem: _read(file) for file in files}


def _read(file: Path) -> Profile:
    if not _NAME.fullmatch(file.stem):
        raise ConfigError(f"{file}: a profile's name has at most 64 of a-z, 0-9 and `-`")
    try:
        root = Table(str(file), tomllib.loads(file.read_text("utf-8"), parse_float=Decimal))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read") from error
    except ValueError as error:
        raise ConfigError(f"{file}: is no TOML: {error}") from error
    folder = file.parent
    limits = root.sub_table("limits", root.pop("limits", {}))
    tiers = root.sub_table("tiers", root.pop("tiers", {}))
    profile = Profile(
        name=file.stem,
        stated_version=_version(root),
        description=root.text("description"),
        tenants=read_tenants(root),
        prompts=_prompts(root.sub_table("prompts", root.pop("prompts", {})), folder),
        root_tier=tiers.text("root", ""),
        sub_tier=tiers.text("sub", ""),
        limit_defaults=_limits(limits.sub_table("defaults", limits.pop("defaults", {}))),
        limit_ceilings=_limits(limits.sub_table("ceilings", limits.pop("ceilings", {}))),
        guest=root.choice("guest", GUESTS, GUESTS[0]),
        direct_tokens_max=_direct_tokens_max(root),
        confidence_min=float(root.share("confidence_min", 0)) or None,
        answer_schema_json=check_schema(
            root, "answer_schema", named_text(root, folder, "answer_schema")
        ),
        citations_required=root.flag("citations_required", False),
        helpers=tuple(read_helper(table, folder) for table in _helper_tables(root)),
        tools=tuple(
            read_tool(name, table, folder) for name, table in root.optional_tables("tools").items()
        ),
    )
    limits.end()
    tiers.end()
    root.end()
    _check_names(root, profile)
    _check_order(root, profile)
    return profile


def _version(root: Table) -> str:
    value = root.pop("version")
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _VERSION.fullmatch(text):
        root.fail("version", 'must be a whole number, or a text such as "1.2"')
    return text


def _prompts(table: Table, folder: Path) -> ProfilePrompts:
    prompts = ProfilePrompts(
        system=named_text(table, folder, "system"),
        system_replacement=named_text(table, folder, "system_replacement"),
        question=named_text(table, folder, "question"),
    )
    template = string.Template(prompts.system_replacement)
    if not template.is_valid():
        table.fail("system_replacement", "has a `$` that names nothing; a plain one is `$$`")
    unknown = set(template.get_identifiers()) - SYSTEM_FIELDS
    if unknown:
        known = ", ".join(f"${name}" for name in sorted(SYSTEM_FIELDS))
        table.fail("system_replacement", f"${min(unknown)} is not one of {known}")
    table.end()
    return prompts


def _limits(table: Table) -> Mapping[str, float]:
    """Return limits by their names in RunLimits."""
    limits: dict[str, float] = {}
    for key in _COUNTS:
        value = table.pop(key, None)
        if value is None:
            continue
        least = 1 if key in ("turns_max", "tokens_max") else 0
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            table.fail(key, f"must be a whole number of at least {least}")
        limits[key] = value
    if "time_max_s" in table.names():
        limits["time_max_s"] = table.seconds("time_max_s", 0)
    if "cost_usd_max" in table.names():
        limits["cost_usd_nanos_max"] = int(table.usd("cost_usd_max") * _USD_NANOS)
    table.end()
    return limits


def _direct_tokens_max(root: Table) -> int | None:
    value = root.pop("direct_tokens_max", None)
    if value is None:
        return None
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= DIRECT_TOKENS_MAX:
        root.fail("direct_tokens_max", f"must be a whole number from 0 to {DIRECT_TOKENS_MAX}")
    return int(value)


def _helper_tables(root: Table) -> list[Table]:
    values = root.pop("helpers", [])
    if not isinstance(values, list) or len(values) > _HELPERS_MAX:
        root.fail("helpers", f"must be at most {_HELPERS_MAX} tables [[helpers]]")
    return [root.sub_table(f"helpers[{index}]", value) for index, value in enumerate(values)]


def _check_names(root: Table, profile: Profile) -> None:
    """What cells call has one meaning."""
    if len(profile.tools) > _TOOLS_MAX:
        root.fail("tools", f"a profile has at most {_TOOLS_MAX} tools")
    seen: set[str] = set()
    names = [name for helper in profile.helpers for name in helper.provides]
    for name in [re.split(r"\W", name)[0] for name in names] + [t.name for t in profile.tools]:
        if name in seen:
            root.fail("", f"{name} is provided twice, by helpers or tools")
        seen.add(name)


def _check_order(root: Table, profile: Profile) -> None:
    """A default is within its own ceiling."""
    for name, value in profile.limit_defaults.items():
        ceiling = profile.limit_ceilings.get(name)
        if ceiling is not None and value > ceiling:
            key = name.replace("cost_usd_nanos_max", "cost_usd_max")
            root.fail(f"limits.defaults.{key}", "is above the profile's own ceiling")
