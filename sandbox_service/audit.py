"""The audit trail: a line for each executed cell, and an event for each suspicious pattern.

It says who ran what and how it ended, with the code as a digest: neither code nor values are in
it. It is evidence and no wall; nothing is decided here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common import telemetry_names as names
from common.telemetry import meter
from sandbox_service.frames import Ended

_log = logging.getLogger(__name__)
_lines = logging.getLogger("fathom.audit")
_security = logging.getLogger("fathom.security")
_LABEL_CHARACTERS_MAX = 256
_TOKEN_CHARACTERS_MAX = 16_384


@dataclass(frozen=True, kw_only=True)
class Executed:
    """One execution, as the trail remembers it."""

    session: str
    """`sessions/{session}`."""
    labels: Mapping[str, str]
    """The session's; `run` names the run."""
    run_token: str
    """The session's; only its payload's tenant is read, and nobody has verified it here."""
    number: int
    """Position among the session's executions, from 1."""
    code: str
    """What was run; its digest and size are written."""
    ending: str
    """One of the endings of the contract, in lower case, or `session_lost` where the session
    was lost or deleted under it."""
    frame: Ended | None
    """What the worker said of the end; None where it could not."""
    sub_calls: int
    """Sub-calls that it made."""


class AuditTrail:
    """Where executions are written: a file, or the service's own log; a context manager.

    A line that cannot be written is logged as an error and counted, and executions go on: the
    trail tells what happened, and a full disk must not end every run.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open the file for appending, readable by its owner only; raises OSError."""
        self._path = path
        self._fd = _opened(path) if path is not None else -1
        _lines.setLevel(logging.INFO)
        metrics = meter(__name__)
        self._findings = metrics.create_counter(names.METRIC_SANDBOX_FINDINGS)
        self._failures = metrics.create_counter(names.METRIC_SANDBOX_AUDIT_FAILURES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def reopen(self) -> None:
        """Open the file again by its name, after something has moved it; keeps the old one where
        that fails."""
        if self._path is None:
            return
        try:
            fd = _opened(self._path)
        except OSError:
            self._note_failure()
            return
        os.close(self._fd)
        self._fd = fd

    def executed(self, execution: Executed) -> None:
        """Write an execution's line and raise an event for each of its findings."""
        line = _line(execution)
        for finding in execution.frame.findings if execution.frame is not None else ():
            self._findings.add(1, {names.PATTERN: finding.pattern})
            about = {name: line[name] for name in ("session", "run", "tenant_unverified")}
            _security.warning(
                "suspicious code",
                extra=about | {"pattern": finding.pattern, "code_line": finding.line},
            )
        if self._path is None:
            _lines.info("executed", extra=line)
            return
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            # One write to a file opened for appending: lines of several processes stay whole.
            if os.write(self._fd, data) != len(data):
                raise OSError("the line was cut")
        except OSError:
            self._note_failure()

    def _note_failure(self) -> None:
        self._failures.add(1)
        _log.exception("the audit log %s cannot be written", self._path)


def _opened(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _line(execution: Executed) -> dict[str, Any]:
    code, frame = execution.code.encode(), execution.frame
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "session": execution.session,
        "run": execution.labels.get("run", ""),
        "tenant_unverified": _tenant(execution.run_token),
        "execution": execution.number,
        "code_sha256": hashlib.sha256(code).hexdigest(),
        "code_bytes": len(code),
        "ending": execution.ending,
        "sub_calls": execution.sub_calls,
    }
    if frame is not None:
        line |= {
            "state_kept": frame.state_kept,
            "findings": sorted({finding.pattern for finding in frame.findings}),
            "own_time_s": round(frame.own_time_s, 6),
            "fuel_used": frame.fuel_used,
            "output_bytes": frame.output_bytes,
        }
    return line


def _tenant(run_token: str) -> str:
    """Return the tenant that a run token names; its signature is the gateway's to check."""
    if len(run_token) > _TOKEN_CHARACTERS_MAX:
        return ""
    payload = [*run_token.split("."), "", ""][1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        tenant = claims["tenant"]
    except (binascii.Error, ValueError, TypeError, KeyError, RecursionError):
        return ""
    return tenant[:_LABEL_CHARACTERS_MAX] if isinstance(tenant, str) else ""
