"""The audit trail: a line an execution, an event a finding, and what happens where it fails."""

from __future__ import annotations

import hashlib
import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from common.config import Secret
from common.run_token import RunToken, RunTokenSigner
from sandbox_service import frames
from sandbox_service.audit import AuditTrail, Executed

SECRET = "context[:20] + 'top secret'"
TOKEN = RunTokenSigner(Secret("k" * 32)).mint(
    RunToken(
        tenant="acme",
        run="runs/7",
        depth=0,
        tiers=("sub",),
        tokens_max=None,
        cost_usd_nanos_max=None,
        tokens_spent=0,
        cost_usd_nanos_spent=0,
        expires_at=1.0,
    )
)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("sandbox_service.audit.meter", provider.get_meter)
    yield reader
    provider.shutdown()


def counts(reader: InMemoryMetricReader) -> dict[tuple[str, ...], Any]:
    """Return the value of every counter by its name and labels."""
    data: Any = reader.get_metrics_data()
    return {
        (metric.name, *map(str, point.attributes.values())): point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def ended(*patterns: frames.Pattern) -> frames.Ended:
    findings = [frames.Finding(pattern=p, line=3, detail=SECRET) for p in patterns]
    return frames.Ended(
        session=1,
        execution=4,
        ending="raised",
        state_kept=True,
        failure=frames.Failure(type="ValueError", message=SECRET),
        final=frames.Final(text=SECRET, is_json=False, variable=""),
        variables=[],
        output_bytes=12,
        output_bytes_dropped=0,
        own_time_s=0.25,
        wait_time_s=1.0,
        fuel_used=1000,
        memory_bytes=1,
        findings=findings,
    )


def executed(frame: frames.Ended | None = None, **fields: Any) -> Executed:
    values: dict[str, Any] = {
        "session": "sessions/a",
        "labels": {"run": "runs/7"},
        "run_token": TOKEN,
        "number": 4,
        "code": SECRET,
        "ending": frame.ending if frame is not None else "session_lost",
        "frame": frame,
        "sub_calls": 2,
    }
    return Executed(**values | fields)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_ran_what_and_how_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with AuditTrail(path) as trail:
        trail.executed(executed(ended("ctypes", "socket", "ctypes")))

    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "session": "sessions/a",
        "run": "runs/7",
        "tenant_unverified": "acme",
        "execution": 4,
        "code_sha256": hashlib.sha256(SECRET.encode()).hexdigest(),
        "code_bytes": len(SECRET),
        "ending": "raised",
        "state_kept": True,
        "findings": ["ctypes", "socket"],
        "own_time_s": 0.25,
        "fuel_used": 1000,
        "output_bytes": 12,
        "sub_calls": 2,
    }


def test_an_execution_without_an_end_has_its_line(tmp_path: Path) -> None:
    """What a dead worker ran is what one will be asked about."""
    with AuditTrail(tmp_path / "audit.log") as trail:
        trail.executed(executed())

    (line,) = lines(tmp_path / "audit.log")
    assert (line["ending"], line["code_bytes"]) == ("session_lost", len(SECRET))


def test_neither_code_nor_values_are_written_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with AuditTrail(tmp_path / "audit.log") as trail, AuditTrail() as logged:
        trail.executed(executed(ended("ctypes")))
        logged.executed(executed(ended("ctypes")))

    written = (tmp_path / "audit.log").read_text()
    logs = "".join(str(vars(record)) for record in caplog.records)
    assert "secret" not in written + logs
    assert TOKEN not in written + logs


def test_the_file_is_its_owners_and_only_ever_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for number in (1, 2):
        with AuditTrail(path) as trail:
            trail.executed(executed(number=number))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line["execution"] for line in lines(path)] == [1, 2]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As log rotation does it."""
    path = tmp_path / "audit.log"
    with AuditTrail(path) as trail:
        trail.executed(executed(number=1))
        path.rename(tmp_path / "old")
        trail.executed(executed(number=2))
        trail.reopen()
        trail.executed(executed(number=3))

    assert [line["execution"] for line in lines(tmp_path / "old")] == [1, 2]
    assert [line["execution"] for line in lines(path)] == [3]


def test_a_file_that_cannot_be_made_anew_leaves_the_old_one(
    tmp_path: Path, metrics: InMemoryMetricReader
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with AuditTrail(folder / "audit.log") as trail:
        folder.rename(tmp_path / "moved")
        trail.reopen()
        trail.executed(executed(number=1))

    assert [line["execution"] for line in lines(tmp_path / "moved" / "audit.log")] == [1]
    assert counts(metrics) == {("fathom.sandbox.audit.failures",): 1}


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.log").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic link"):
        AuditTrail(tmp_path / "audit.log")


def test_a_line_that_cannot_be_written_is_an_error_and_counted(
    metrics: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
) -> None:
    """Executions go on, and nobody may find out only when the line is needed."""
    with AuditTrail(Path("/dev/full")) as trail:
        trail.executed(executed())
        trail.executed(executed())

    assert counts(metrics) == {("fathom.sandbox.audit.failures",): 2}
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_without_a_file_lines_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever level the service's own log has."""
    caplog.set_level(logging.ERROR)
    caplog.handler.setLevel(logging.NOTSET)
    with AuditTrail() as trail:
        trail.executed(executed(ended()))

    (record,) = caplog.records
    assert (record.name, record.levelname) == ("fathom.audit", "INFO")
    assert vars(record)["ending"] == "raised"


def test_each_finding_is_an_event_and_counted_by_pattern(
    metrics: InMemoryMetricReader, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with AuditTrail(tmp_path / "audit.log") as trail:
        trail.executed(executed(ended("ctypes", "socket", "ctypes")))

    events = [vars(record) for record in caplog.records if record.name == "fathom.security"]
    assert [event["pattern"] for event in events] == ["ctypes", "socket", "ctypes"]
    assert {event["levelname"] for event in events} == {"WARNING"}
    about = ("session", "run", "tenant_unverified", "code_line")
    assert [events[0][name] for name in about] == ["sessions/a", "runs/7", "acme", 3]
    assert counts(metrics) == {
        ("fathom.sandbox.findings", "ctypes"): 2,
        ("fathom.sandbox.findings", "socket"): 1,
    }


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "v1",
        "v1.!!!.x",
        "v1.e30.x",
        "v1.W10.x",
        "v1.eyJ0ZW5hbnQiOjV9.x",
        "v1." + "A" * 99999,
    ],
)
def test_a_token_that_names_no_tenant_harms_nobody(tmp_path: Path, token: str) -> None:
    """Anyone who may call CreateSession may send any text as a token."""
    with AuditTrail(tmp_path / "audit.log") as trail:
        trail.executed(executed(run_token=token))

    (line,) = lines(tmp_path / "audit.log")
    assert line["tenant_unverified"] == ""
