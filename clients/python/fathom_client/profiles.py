"""Profiles: what an operator has decided for runs of one kind. They are not changed from here."""

from __future__ import annotations

import grpc
from fathom.orchestrator.v1 import profile_service_pb2 as pb
from fathom.orchestrator.v1 import profile_service_pb2_grpc

from fathom_client.calls import answer_of

_TIMEOUT_S = 30.0


class Profiles:
    """The profiles of one server. The channel belongs to the client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: profile_service_pb2_grpc.ProfileServiceAsyncStub = (
            profile_service_pb2_grpc.ProfileServiceStub(channel)
        )

    async def all(self) -> list[pb.Profile]:
        """Return those that the caller may use, by name."""
        found: list[pb.Profile] = []
        page_token = ""
        while True:
            request = pb.ListProfilesRequest(page_token=page_token)
            page = await answer_of(self._stub.ListProfiles(request, timeout=_TIMEOUT_S))
            found.extend(page.profiles)
            page_token = page.next_page_token
            if not page_token:
                return found

    async def get(self, name: str) -> pb.Profile:
        """Return `profiles/{profile}`."""
        request = pb.GetProfileRequest(name=name)
        return (await answer_of(self._stub.GetProfile(request, timeout=_TIMEOUT_S))).profile
