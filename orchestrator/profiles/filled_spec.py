"""A run's spec under a profile: what the run leaves open is the profile's, and what it asks for is
bounded by it. What the server's defaults are is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fathom.orchestrator.v1.run_pb2 import RunSpec

from orchestrator.profiles.profile import Profile
from orchestrator.runs.limits import RunLimits


def filled(spec: RunSpec, profile: Profile) -> RunSpec:
    """Return the spec with the profile's values where it sets none; limits are not among them."""
    complete = RunSpec()
    complete.CopyFrom(spec)
    for field in ("root_tier", "sub_tier", "answer_schema_json"):
        if not getattr(spec, field):
            setattr(complete, field, getattr(profile, field))
    for field in ("direct_tokens_max", "confidence_min"):
        value = getattr(profile, field)
        if value is not None and not spec.HasField(field):  # type: ignore[arg-type]  # by name
            setattr(complete, field, value)
    return complete


def lowered(ceilings: RunLimits, profile: Profile) -> RunLimits:
    """Return the ceilings of a run: the server's, or the profile's where those are lower."""
    own = {
        name: min(value, getattr(ceilings, name)) for name, value in profile.limit_ceilings.items()
    }
    return _replaced(ceilings, own)


def defaults_of(defaults: RunLimits, profile: Profile, ceilings: RunLimits) -> RunLimits:
    """Return what a run gets that does not ask: the profile's values, else the server's; none above
    its ceilings."""
    whole = dataclasses.asdict(defaults) | dict(profile.limit_defaults)
    return _replaced(
        defaults, {name: min(value, getattr(ceilings, name)) for name, value in whole.items()}
    )


def _replaced(limits: RunLimits, values: Mapping[str, Any]) -> RunLimits:
    return dataclasses.replace(limits, **values)
