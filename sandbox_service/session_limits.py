"""SessionLimits of the contract: defaults and ceilings, reading and writing them."""

from __future__ import annotations

from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from common.errors import InvalidFieldError, LimitAboveCeilingError
from sandbox_service.config import SandboxConfig
from sandbox_service.limits import Limits

_LEAST = {
    "memory_bytes_max": 64 << 20,
    "fuel_max": 1,
    "output_bytes_max": 0,
    "sub_calls_max": 0,
    "output_lines_max": 0,
    "session_fuel_max": 1,
    "value_bytes_max": 64 << 10,
    "open_files_max": 1,
}
"""The least that a session may ask for, of each limit that is a number. The interpreter alone
takes 40 MB, and its runtime asks the host for what a few KiB hold."""
_TIMES = ("execute_time_max", "session_time_max")


def default_limits(config: SandboxConfig) -> Limits:
    """Return what a session gets that asks for nothing."""
    return _configured(config, "default")


def ceiling_limits(config: SandboxConfig) -> Limits:
    """Return what a session may ask for at most."""
    return _configured(config, "max")


def read_limits(asked: session_pb2.SessionLimits, config: SandboxConfig) -> Limits:
    """Return the limits of a session that asks for these.

    Raises InvalidFieldError or LimitAboveCeilingError.
    """
    default, ceiling = default_limits(config), ceiling_limits(config)
    limits: dict[str, int | float] = {
        name: _read_number(name, asked, default, ceiling) for name in _LEAST
    }
    for name in _TIMES:
        limits[f"{name}_s"] = _read_time(name, asked, default, ceiling)
    return Limits(**limits)  # type: ignore[arg-type]  # whole numbers for all but the times


def wire_limits(limits: Limits) -> session_pb2.SessionLimits:
    """Return the limits' wire form."""
    wire = session_pb2.SessionLimits(**{name: getattr(limits, name) for name in _LEAST})
    for name in _TIMES:
        getattr(wire, name).FromNanoseconds(int(getattr(limits, f"{name}_s") * 1e9))
    return wire


def _configured(config: SandboxConfig, which: str) -> Limits:
    limits = {name: getattr(config, f"{name.removesuffix('_max')}_{which}") for name in _LEAST}
    for name in _TIMES:
        limits[f"{name}_s"] = getattr(config, f"{name.removesuffix('_max')}_{which}_s")
    return Limits(**limits)


def _read_number(
    name: str, asked: session_pb2.SessionLimits, default: Limits, ceiling: Limits
) -> int:
    if not asked.HasField(name):  # type: ignore[arg-type]  # a name of _LEAST
        return int(getattr(default, name))
    value, most = int(getattr(asked, name)), int(getattr(ceiling, name))
    if value < _LEAST[name]:
        raise InvalidFieldError(f"limits.{name}", f"must be at least {_LEAST[name]}")
    if value > most:
        raise LimitAboveCeilingError(f"limits.{name}", value, most)
    return value


def _read_time(
    name: str, asked: session_pb2.SessionLimits, default: Limits, ceiling: Limits
) -> float:
    if not asked.HasField(name):  # type: ignore[arg-type]  # a name of _TIMES
        return float(getattr(default, f"{name}_s"))
    duration: Duration = getattr(asked, name)
    time_s = duration.seconds + duration.nanos / 1e9
    most_s = float(getattr(ceiling, f"{name}_s"))
    if time_s <= 0:
        raise InvalidFieldError(f"limits.{name}", "must be above 0")
    if time_s > most_s:
        raise LimitAboveCeilingError(f"limits.{name}", f"{time_s:g} s", f"{most_s:g} s")
    return time_s
