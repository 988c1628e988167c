"""What waits for the readers of streams, all together: a bound on the memory that slow ones take.

Where it is passed, the stream of which most waits is cut off. A tenant has a share of it alone, so
that its readers cost nobody else a stream.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Protocol

_log = logging.getLogger(__name__)
BYTES_MAX = 64 << 20
"""Of text. While a message stands in a connection's buffers it takes up to ten times its text."""
TENANT_BYTES_MAX = 40 << 20
"""Room for the largest answer that is taken from a provider, and for some more."""


class Waiting(Protocol):
    """Something for one reader."""

    @property
    def tenant(self) -> str:
        """Whose reader it is."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """What can be let go of: the reader has not begun to take it."""
        ...

    def cut_off(self) -> None:
        """Let go of that and tell the reader when it comes."""
        ...


class Backlog:
    """What one gateway holds for the readers of its streams."""

    def __init__(
        self, *, bytes_max: int = BYTES_MAX, tenant_bytes_max: int = TENANT_BYTES_MAX
    ) -> None:
        self._bytes_max = bytes_max
        self._tenant_bytes_max = tenant_bytes_max
        self._held_bytes = 0
        self._tenants: Counter[str] = Counter()
        self._members: dict[Waiting, None] = {}

    @property
    def held_bytes(self) -> int:
        """What is held for all."""
        return self._held_bytes

    def hold(self, member: Waiting, size_bytes: int) -> None:
        """Count what is held for a reader, whose `waiting_bytes` have it by now; whoever has most
        is cut off where that is too much."""
        tenant = member.tenant
        self._members[member] = None
        self._held_bytes += size_bytes
        self._tenants[tenant] += size_bytes
        while self._tenants[tenant] > self._tenant_bytes_max and self._cut_off_most(tenant):
            pass
        while self._held_bytes > self._bytes_max and self._cut_off_most(None):
            pass

    def release(self, member: Waiting, size_bytes: int) -> None:
        """Say that so much is not held any more."""
        self._held_bytes -= size_bytes
        self._tenants[member.tenant] -= size_bytes
        if not self._tenants[member.tenant]:
            del self._tenants[member.tenant]

    def forget(self, member: Waiting) -> None:
        """Say that a reader has gone; nothing is held for it."""
        self._members.pop(member, None)

    def _cut_off_most(self, tenant: str | None) -> bool:
        """Return whether anybody could be."""
        own = (each for each in self._members if tenant is None or each.tenant == tenant)
        most = max(own, key=lambda each: each.waiting_bytes, default=None)
        if most is None or not most.waiting_bytes:
            return False
        _log.warning(
            "a stream is read too slowly",
            extra={"tenant": most.tenant, "waiting_bytes": most.waiting_bytes},
        )
        most.cut_off()
        return True
