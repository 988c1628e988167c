"""Kills at random under many runs, and what must hold afterwards."""

from __future__ import annotations

import os

# Before gRPC is imported: its own handlers around a fork can end a process that is being started.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
