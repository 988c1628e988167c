"""A sandbox service as a process of its own, for tests that kill it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.service_process import ServiceProcess

_PREFIX = "FATHOM_SANDBOX_"
_KEPT = ("HOME", "XDG_CACHE_HOME", f"{_PREFIX}GUEST_CACHE", f"{_PREFIX}GUEST_WHEEL")
"""Where the prepared guest is."""


class SandboxProcess(ServiceProcess):
    """Runs while its block lasts, unless it is killed before."""

    def __init__(self, folder: Path, *, gateway: str) -> None:
        """`folder` holds the object store and the logs; `gateway` is an address."""
        settings = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            f"{_PREFIX}GATEWAY_ADDRESS": gateway,
            f"{_PREFIX}OBJECT_STORE": str(folder / "objects"),
            f"{_PREFIX}WORKERS": "1",
        }
        super().__init__("sandbox_service", _PREFIX, folder, settings)
