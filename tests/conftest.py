"""What holds for every test."""

from __future__ import annotations

import os

# Before gRPC is imported anywhere. Tests start processes while gRPC's threads are at work; its own
# handlers around a fork can then end the child before it is executed anew.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
