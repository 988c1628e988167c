"""What the allocator is told holds in a process that is told it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.allocator import ARENAS_MAX

THREADS = """
import ctypes, sys, threading
from common.allocator import share_arenas
if sys.argv[1] == "told":
    share_arenas()
met = threading.Barrier(9)
def take():
    met.wait()
    held = [bytes(600) for _ in range(1_000)]
    met.wait()
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
met.wait()
met.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.parametrize(("told", "is_shared"), [("told", True), ("untold", False)])
def test_threads_share_arenas(told: str, is_shared: bool) -> None:
    command = [sys.executable, "-c", THREADS, told]
    described = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout

    assert (described.count(b"<heap nr=") <= ARENAS_MAX) is is_shared
