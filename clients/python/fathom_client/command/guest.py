"""Preparing the sandbox's Python guest before services that need it are started.

The work is the sandbox service's own program, run as a process; it shows its progress itself.
"""

from __future__ import annotations

import asyncio
import sys

from fathom_client.command.terminal import Terminal
from fathom_client.errors import FathomError

_MODULE = "sandbox_service.prepare"


class GuestError(FathomError):
    """The Python guest could not be prepared."""


async def prepare_guest(terminal: Terminal) -> None:
    """Make the guest ready; quick where it is. Raises GuestError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", _MODULE, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
    if process.returncode:
        raise GuestError("the Python guest could not be prepared; the lines above tell why")
    terminal.note(output.decode(errors="replace").strip())
