"""Who calls, where the transport has proved it: the names in the certificate of a caller."""

from __future__ import annotations

from typing import Any

import grpc


def peer_names(context: grpc.aio.ServicerContext[Any, Any]) -> frozenset[str] | None:
    """Return the names in the caller's certificate: the alternative ones, or else the common one.

    None where callers show no certificate. Checked against the authority by the server, which
    serves nobody before that.
    """
    identities = context.peer_identities()
    if identities is None:
        return None
    return frozenset(
        name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        for name in identities
    )
