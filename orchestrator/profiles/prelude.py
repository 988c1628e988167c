"""What a profile puts into a session before the first cell: its helpers, and a function for each
host tool.
"""

from __future__ import annotations

from orchestrator.profiles.profile import HostTool, Profile
from orchestrator.runs.sessions.beginning import Prelude

_TOOL = """def {name}(**arguments):
    {about!r}
    return call_tool({name!r}, **arguments)
"""


def prelude_of(profile: Profile) -> Prelude:
    """Return what sessions of a run with this profile are made with."""
    sources = [(helper.name, helper.source) for helper in profile.helpers]
    if profile.tools:
        sources.append(("host tools", "\n\n".join(map(_function, profile.tools))))
    return Prelude(guest=profile.guest, sources=sources, profile=profile.resource_name)


def _function(tool: HostTool) -> str:
    return _TOOL.format(name=tool.name, about=tool.description)
