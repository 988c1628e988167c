"""Who calls, by what the transport has proved: names count, and the lack of them is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from common.errors import PermissionDeniedError
from common.peers import admitting

METHOD = "/fathom.sandbox.v1.SandboxService/CreateSession"
admit = admitting({"fathom-orchestrator"})


class Context:
    """A call whose caller has shown a certificate, or none."""

    def __init__(self, identities: Sequence[bytes] | None) -> None:
        self._identities = identities

    def peer_identities(self) -> Sequence[bytes] | None:
        return self._identities


@pytest.mark.parametrize(
    "identities", [None, [b"fathom-orchestrator"], [b"10.0.0.7", b"fathom-orchestrator"]]
)
def test_the_service_and_on_an_open_network_everybody_is_admitted(
    identities: Sequence[bytes] | None,
) -> None:
    context: Any = Context(identities)
    admit(METHOD, context)


@pytest.mark.parametrize(
    "identities",
    [
        [b""],
        [],
        [b"fathom-sandbox"],
        [b"fathom-orchestrator.attacker.example"],
        [b"FATHOM-ORCHESTRATOR"],
        [b"fathom-orchestrator\0"],
        [b"\xff"],
    ],
)
def test_any_other_certificate_of_the_authority_is_refused(identities: Sequence[bytes]) -> None:
    """gRPC tells of one without a name as of one with an empty name, and not as of none."""
    context: Any = Context(identities)
    with pytest.raises(PermissionDeniedError, match="fathom-orchestrator"):
        admit(METHOD, context)
