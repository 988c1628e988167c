"""Who may set quotas and read usage: whoever has the operator's key. Default deny."""

from __future__ import annotations

import hmac

from common.config import Secret
from common.errors import PermissionDeniedError, UnauthenticatedError

OPERATOR_KEY_METADATA = "fathom-operator-key"
"""The gRPC metadata key that carries it."""


class OperatorGate:
    """Admits callers who bring the key."""

    def __init__(self, key: Secret) -> None:
        """An empty key admits nobody."""
        self._key = key

    def admit(self, brought: str) -> None:
        """Raise UnauthenticatedError or PermissionDeniedError unless it is the key."""
        if not self._key:
            raise PermissionDeniedError("operator", "this gateway has no operator key configured")
        if not brought:
            raise UnauthenticatedError("missing", f"the metadata {OPERATOR_KEY_METADATA} is needed")
        if not hmac.compare_digest(brought.encode(), self._key.reveal().encode()):
            raise UnauthenticatedError("forged", "the operator key is not this gateway's")
