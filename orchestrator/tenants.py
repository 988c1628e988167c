"""Whose resources a call works on: the tenant of the caller, as its admission has told.

There is nothing here of how callers are told apart; see `api_keys.py`.
"""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from typing import Any

import grpc

from common.errors import PermissionDeniedError

DEFAULT_TENANT = "default"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caller:
    """Who makes a call."""

    tenant: str = DEFAULT_TENANT
    """Whose resources it sees, and whose money it spends."""
    key: str = ""
    """Name of its API key, for quotas and the audit log; empty where there are none."""
    is_operator: bool = False
    """May ask about the whole service, and stop any tenant's work."""


_caller: ContextVar[Caller | None] = ContextVar("fathom_caller", default=None)


def set_caller(caller: Caller) -> None:
    """Note who makes the call being served."""
    _caller.set(caller)


def caller_of(_context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Return who makes the call being served."""
    caller = _caller.get()
    assert caller is not None, "the call was not admitted"
    return caller


def tenant_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Return the tenant of the call being served."""
    return caller_of(context).tenant


def check_operator(context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Return who makes the call; raises PermissionDeniedError where it is no operator."""
    caller = caller_of(context)
    if not caller.is_operator:
        raise PermissionDeniedError("operator", "this needs the API key of an operator")
    return caller
