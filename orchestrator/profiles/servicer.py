"""ProfileService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from fathom.orchestrator.v1 import profile_service_pb2 as pb
from fathom.orchestrator.v1 import profile_service_pb2_grpc
from fathom.orchestrator.v1.run_pb2 import Limits

from common.page_tokens import make_page_token, page_length, page_size, read_page_token
from common.server import Server
from orchestrator.profiles.profile import Profile
from orchestrator.profiles.profiles import Profiles
from orchestrator.resource_names import read_name
from orchestrator.tenants import tenant_of

_NAME = "fathom.orchestrator.v1.ProfileService"
_SCOPE = "profiles"
CallContext = grpc.aio.ServicerContext[Any, Any]


class ProfileServicer(profile_service_pb2_grpc.ProfileServiceServicer):
    """The service."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    def register(self, server: Server) -> None:
        """Add it to a server."""
        profile_service_pb2_grpc.add_ProfileServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: CallContext
    ) -> pb.ListProfilesResponse:
        """List what the caller may use, by name."""
        size = page_size(request.page_size)
        after = read_page_token(_SCOPE, request.page_token)
        visible = [p for p in self._profiles.visible(tenant_of(context)) if p.name > after]
        profiles = [_message(profile) for profile in visible[: size + 1]]
        length = page_length(profiles, size)
        is_more = len(visible) > length
        token = make_page_token(_SCOPE, visible[length - 1].name) if is_more else ""
        return pb.ListProfilesResponse(profiles=profiles[:length], next_page_token=token)

    async def GetProfile(
        self, request: pb.GetProfileRequest, context: CallContext
    ) -> pb.GetProfileResponse:
        """Return one of them."""
        name = read_name("name", request.name, collection="profiles")
        return pb.GetProfileResponse(profile=_message(self._profiles.get(tenant_of(context), name)))


def _message(profile: Profile) -> pb.Profile:
    return pb.Profile(
        name=profile.resource_name,
        description=profile.description,
        version=profile.version,
        limit_defaults=_limits(profile.limit_defaults),
        limit_ceilings=_limits(profile.limit_ceilings),
        root_tier=profile.root_tier,
        sub_tier=profile.sub_tier,
        guest_profile=profile.guest,
        answer_schema_json=profile.answer_schema_json,
        citations_required=profile.citations_required,
        helpers=[called for helper in profile.helpers for called in helper.provides],
        host_tools=[
            pb.HostTool(
                name=tool.name,
                description=tool.description,
                arguments_schema_json=tool.arguments_schema_json,
                result_schema_json=tool.result_schema_json,
                calls_max=tool.calls_max,
            )
            for tool in profile.tools
        ],
    )


def _limits(values: Mapping[str, float]) -> Limits:
    limits = Limits()
    for name, value in values.items():
        if name == "time_max_s":
            limits.time_max.FromNanoseconds(round(value * 1e9))
        else:
            setattr(limits, name, int(value))
    return limits
