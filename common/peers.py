"""Who calls, where the transport has proved it: the names in the certificate of a caller."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import grpc

from common.errors import PermissionDeniedError
from common.interceptors import Admit


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


def admitting(names: Collection[str]) -> Admit:
    """Return what admits callers whose certificate has one of `names`, and where callers show none,
    all: the network is what keeps others away then."""

    def admit(_method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        shown = peer_names(context)
        if shown is not None and not shown & {*names}:
            raise PermissionDeniedError(
                "caller",
                f"the caller's certificate is for {', '.join(sorted(shown))}; this service is for"
                f" {' or '.join(sorted(names))}",
            )

    return admit
