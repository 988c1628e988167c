"""Whose resources a call works on. There is one tenant until callers are told apart."""

from __future__ import annotations

from typing import Any

import grpc

DEFAULT_TENANT = "default"


def tenant_of(_context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Return the tenant of a call."""
    return DEFAULT_TENANT
