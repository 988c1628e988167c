"""Quotas from the wire, checked field by field, and to the wire."""

from __future__ import annotations

import re

from fathom.gateway.v1 import quota_service_pb2 as pb2
from fathom.gateway.v1.generation_pb2 import Usage

from common.errors import InvalidFieldError, LimitAboveCeilingError
from llm_gateway.accounts.caps import Amounts
from llm_gateway.accounts.quotas import Quota, Scope

TENANT = r"[^/\x00-\x1f\x7f]{1,128}"
"""Names of tenants; no database takes all control characters."""
_PARENT = re.compile(rf"tenants/({TENANT})")
_NAME = re.compile(rf"tenants/({TENANT})/quotas/([A-Za-z0-9._-]{{1,128}})")
_TIER_CHARACTERS_MAX = 256
_WINDOW_S_MIN = 1
_WINDOW_S_MAX = 31 * 86_400
_LIMIT_CEILING = 2**53
"""Larger whole numbers are not exact in the scripts of every store."""
_LIMITS = ("calls_max", "tokens_max", "cost_usd_nanos_max", "concurrency_max")
_SCOPES = {
    Scope.TENANT: pb2.Quota.SCOPE_TENANT,
    Scope.KEY: pb2.Quota.SCOPE_KEY,
    Scope.RUN: pb2.Quota.SCOPE_RUN,
}
_MICROS = 1_000_000


def tenant_from(parent: str) -> str:
    """Return the tenant that a parent names; raises InvalidFieldError."""
    found = _PARENT.fullmatch(parent)
    if found is None:
        raise InvalidFieldError("parent", "must have the form tenants/{tenant}")
    return found[1]


def quota_name_from(name: str, field: str = "name") -> tuple[str, str]:
    """Return tenant and quota of a name; raises InvalidFieldError."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise InvalidFieldError(field, "must have the form tenants/{tenant}/quotas/{quota}")
    return found[1], found[2]


def quota_from(wire: pb2.Quota) -> Quota:
    """Return what is to be set; raises InvalidFieldError or LimitAboveCeilingError."""
    tenant, quota = quota_name_from(wire.name, "quota.name")
    limits = {field.name: value for field, value in wire.ListFields() if field.name in _LIMITS}
    violations = {
        f"quota.{name}": "must be 0 or more" for name, value in limits.items() if value < 0
    }
    if not limits:
        violations["quota"] = f"at least one of {', '.join(_LIMITS)} is needed"
    if len(wire.tier) > _TIER_CHARACTERS_MAX or not wire.tier.isprintable():
        violations["quota.tier"] = f"may have at most {_TIER_CHARACTERS_MAX} printable characters"
    if wire.scope and wire.scope not in _SCOPES.values():
        violations["quota.scope"] = "must be TENANT, KEY or RUN"
    window_us = wire.window.ToMicroseconds() if wire.HasField("window") else 0
    is_window = _WINDOW_S_MIN <= window_us / _MICROS <= _WINDOW_S_MAX
    if wire.HasField("window") and not is_window:
        violations["quota.window"] = "must be 1 second to 31 days"
    if violations:
        raise InvalidFieldError.many(violations)
    for name, value in limits.items():
        if value > _LIMIT_CEILING:
            raise LimitAboveCeilingError(f"quota.{name}", value, _LIMIT_CEILING)
    return Quota(
        tenant=tenant,
        quota=quota,
        tier=wire.tier,
        scope=Scope(wire.scope or Scope.TENANT),
        window_us=window_us,
        **limits,
    )


def quota_to(quota: Quota) -> pb2.Quota:
    """Return a quota's wire form."""
    limits = {name: getattr(quota, name) for name in _LIMITS}
    wire = pb2.Quota(
        name=quota.name,
        tier=quota.tier,
        scope=_SCOPES[quota.scope],
        **{name: value for name, value in limits.items() if value is not None},
    )
    if quota.window_us:
        wire.window.FromMicroseconds(quota.window_us)
    wire.update_time.FromMicroseconds(quota.updated_us)
    return wire


def usage_to(amounts: Amounts) -> Usage:
    """Return amounts as a usage, in which all tokens are input."""
    calls, tokens, cost = amounts
    return Usage(calls=calls, input_tokens=tokens, cost_usd_nanos=cost)
