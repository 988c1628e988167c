"""Who may set quotas and read usage: whoever has the operator's key. Default deny."""

from __future__ import annotations

import hmac
import logging

from common.config import Secret
from common.errors import PermissionDeniedError, UnauthenticatedError

OPERATOR_KEY_METADATA = "fathom-operator-key"
"""The gRPC metadata key that carries it."""
_audit = logging.getLogger("fathom.audit")


class OperatorGate:
    """Admits callers who bring the key."""

    def __init__(self, key: Secret) -> None:
        """An empty key admits nobody."""
        self._key = key

    def admit(self, brought: str, peer: str = "") -> None:
        """Raise UnauthenticatedError, and write that down with the address of the peer, or
        PermissionDeniedError unless it is the key."""
        if not self._key:
            raise PermissionDeniedError("operator", "this gateway has no operator key configured")
        try:
            self._check(brought)
        except UnauthenticatedError as error:
            facts = {"problem": error.metadata["problem"], "peer": peer}
            _audit.warning("an operator key was refused", extra=facts)
            raise

    def _check(self, brought: str) -> None:
        if not brought:
            raise UnauthenticatedError("missing", f"the metadata {OPERATOR_KEY_METADATA} is needed")
        if not hmac.compare_digest(brought.encode(), self._key.reveal().encode()):
            raise UnauthenticatedError("forged", "the operator key is not this gateway's")
