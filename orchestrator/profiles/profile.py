"""A profile: what an operator has decided for runs of one kind. It never changes; another version
is another profile, and a run works with the one that it began with.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Self

import orjson

ARGUMENT_BYTES_MAX = 1 << 20
RESULT_BYTES_MAX = 8 << 20
"""What any host tool may be given, and give."""
_DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Helper:
    """Python source that a session runs before the first cell."""

    name: str
    """File name, for people."""
    source: str
    """The source."""
    provides: Mapping[str, str]
    """Its public functions and classes: what is called, with its parameters, and what it does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostTool:
    """A function of the operator's that cells may call, and what they may ask of it."""

    name: str
    """As cells call it."""
    endpoint: str
    """Address of its service, `host:port`."""
    description: str
    """What it does, for models and people."""
    arguments_schema_json: str
    """JSON Schema of its arguments, an object by name."""
    result_schema_json: str
    """JSON Schema of its result; empty for anything."""
    calls_max: int
    """Calls of a run and all below it together."""
    time_max_s: float
    """A call is given up after this long, its wait for a place included."""
    argument_bytes_max: int
    """Size of the arguments, as JSON text."""
    result_bytes_max: int
    """Size of the result, as JSON text."""
    concurrency_max: int
    """Calls that one orchestrator has under way at a time."""
    tenants: tuple[str, ...]
    """Whose runs may call it; empty for those of all that may use the profile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfilePrompts:
    """What the root model is told besides, or instead."""

    system: str = ""
    """Added to the system message."""
    system_replacement: str = ""
    """Template that takes the place of the built-in system message; empty for that one."""
    question: str = ""
    """Added to the question."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """One version of a profile."""

    name: str
    """`profiles/{profile}` without the collection."""
    stated_version: str
    """As its file has it."""
    description: str
    """What it is for, for people."""
    tenants: tuple[str, ...] = ()
    """Who may use it; empty for everybody."""
    prompts: ProfilePrompts = ProfilePrompts()
    """What the root model is told."""
    root_tier: str = ""
    """Where a run names none; empty for the server's."""
    sub_tier: str = ""
    """Where a run names none; empty for the server's."""
    limit_defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What a run gets that does not ask, by the names in RunLimits."""
    limit_ceilings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What a run may ask for, by the names in RunLimits; counted where lower than the server's."""
    guest: str = ""
    """What sessions have imported beforehand; empty for the sandbox service's default."""
    direct_tokens_max: int | None = None
    """Where a run sets none; None for the server's."""
    confidence_min: float | None = None
    """Where a run sets none; None for none."""
    answer_schema_json: str = ""
    """Where a run gives none; empty for none."""
    citations_required: bool = False
    """Whether an answer needs a citation that was found in the context."""
    helpers: tuple[Helper, ...] = ()
    """In the order in which they are run."""
    tools: tuple[HostTool, ...] = ()
    """What cells may call."""

    @property
    def resource_name(self) -> str:
        """`profiles/{profile}`."""
        return f"profiles/{self.name}"

    @functools.cached_property
    def version(self) -> str:
        """What tells it apart from every other one: the stated version, and a digest of it all."""
        digest = hashlib.blake2b(self.to_json(), digest_size=_DIGEST_BYTES).hexdigest()
        return f"{self.stated_version}+{digest}"

    def is_for(self, tenant: str) -> bool:
        """Whether a tenant may use it."""
        return not self.tenants or tenant in self.tenants

    def tool(self, name: str) -> HostTool | None:
        """Return one of its tools; None where it has none of that name."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def to_json(self) -> bytes:
        """Return it as JSON, the same bytes for the same profile."""
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Make one of what `to_json` gave."""
        values: dict[str, Any] = orjson.loads(data)
        values["prompts"] = ProfilePrompts(**values["prompts"])
        values["helpers"] = tuple(Helper(**each) for each in values["helpers"])
        values["tools"] = tuple(
            HostTool(**{**each, "tenants": tuple(each["tenants"])}) for each in values["tools"]
        )
        values["tenants"] = tuple(values["tenants"])
        return cls(**values)


NO_PROFILE = Profile(name="", stated_version="", description="")
"""That of a run that names none: everything is the server's."""
