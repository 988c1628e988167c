"""What a run's spec leaves open, filled in: by its profile first, then by the server."""

from __future__ import annotations

import dataclasses

from fathom.orchestrator.v1.run_pb2 import RunSpec

from orchestrator.profiles.filled_spec import defaults_of, filled, lowered
from orchestrator.profiles.profile import Profile
from orchestrator.runs.default_limits import DefaultLimits
from orchestrator.runs.spec import complete_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecDefaults:
    """The server's part of every spec."""

    limits: DefaultLimits
    """Limits that a run gets, and may have at most."""
    direct_tokens_max: int
    """Tokens of a context that a model is first shown whole."""

    def complete(
        self, spec: RunSpec, profile: Profile, *, size_bytes: int = 0, documents: int = 1
    ) -> RunSpec:
        """Return the spec with the defaults of its profile and those for a context of that size.

        Raises an InvalidFieldError or LimitAboveCeilingError that names the field.
        """
        ceilings = lowered(self.limits.ceilings, profile)
        defaults = self.limits.for_context(size_bytes=size_bytes, documents=documents)
        return complete_spec(
            filled(spec, profile),
            defaults=defaults_of(defaults, profile, ceilings),
            ceilings=ceilings,
            direct_tokens_max=self.direct_tokens_max,
        )
