"""Benchmarks: `python -m bench NAME`, or `all`. They run the real services as real processes."""

from __future__ import annotations

import os

# Before gRPC is imported: its own handlers around a fork can end a process that is being started.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
