"""The audit log of a running service: a line for every cell, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub

from common.config import ConfigError
from sandbox_service.__main__ import serve
from sandbox_service.config import SandboxConfig
from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually
from tests.support.sandbox import Sandbox, guest, sandbox

pytestmark = pytest.mark.guest


def audited(folder: Path) -> contextlib.AbstractAsyncContextManager[Sandbox]:
    return sandbox(guest(), folder, audit_log=folder / "audit.log")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.log").read_text().splitlines()]


async def test_every_cell_has_its_line_before_its_result_is_out(tmp_path: Path) -> None:
    """Whatever a caller has seen has been written down."""
    cells = ["x = 1", "1 / 0", "x = (", "import sys\nsys.exit()", "import os\nos.abort()"]
    async with audited(tmp_path) as box:
        session = await box.create(labels={"run": "runs/7"})
        for number, cell in enumerate(cells, 1):
            await box.run(session, cell)
            assert len(lines(tmp_path)) == number

    written = lines(tmp_path)
    assert [line["ending"] for line in written] == [
        "completed",
        "raised",
        "syntax_error",
        "exited",
        "trapped",
    ]
    assert [line["state_kept"] for line in written] == [True, True, True, True, False]
    assert [line["execution"] for line in written] == [1, 2, 3, 4, 5]
    assert {(line["session"], line["run"]) for line in written} == {(session, "runs/7")}
    assert [line["code_sha256"] for line in written] == [
        hashlib.sha256(cell.encode()).hexdigest() for cell in cells
    ]


async def test_a_line_has_what_the_cell_took(tmp_path: Path) -> None:
    async with audited(tmp_path) as box:
        ran = await box.run(await box.create(), "import ctypes\nllm_query_batched(['a', 'b'])")

    (line,) = lines(tmp_path)
    assert line["sub_calls"] == 2
    assert line["findings"] == ["ctypes"]
    assert line["fuel_used"] == ran.result.fuel_used
    assert line["output_bytes"] == ran.result.output_bytes
    assert line["own_time_s"] == pytest.approx(
        ran.result.own_time.ToTimedelta().total_seconds(), abs=2e-6
    )


async def test_a_cell_whose_caller_went_away_has_its_line(tmp_path: Path) -> None:
    async with audited(tmp_path) as box:
        session = await box.create()
        running = asyncio.create_task(box.run(session, "print('x')\nllm_query('hold')"))
        await asyncio.wait_for(box.gateway.held.wait(), 30)

        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await running
        await eventually(lambda: len(lines(tmp_path)) == 1)

    (line,) = lines(tmp_path)
    assert (line["ending"], line["sub_calls"]) == ("interrupted", 1)


async def test_a_cell_whose_worker_died_has_its_line(tmp_path: Path) -> None:
    """It is the one that will be asked about."""
    async with audited(tmp_path) as box:
        session = await box.create()
        running = asyncio.create_task(box.run(session, "llm_query('hold')"))
        await asyncio.wait_for(box.gateway.held.wait(), 30)

        (pid,) = box.worker_pids()
        os.kill(pid, signal.SIGKILL)
        ran = await running

    (line,) = lines(tmp_path)
    assert (ran.ending, line["ending"], line["state_kept"]) == ("worker_lost", "worker_lost", False)
    assert line["code_sha256"] == hashlib.sha256(b"llm_query('hold')").hexdigest()


async def test_a_log_that_cannot_be_written_does_not_stop_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The result goes out; the error log says that its line is missing."""
    async with sandbox(guest(), tmp_path, audit_log=Path("/dev/full")) as box:
        ran = await box.run(await box.create(), "1")

    assert (ran.ending, ran.out) == ("completed", "1\n")
    assert "the audit log /dev/full cannot be written" in caplog.text


async def test_a_session_deleted_while_its_cell_runs_leaves_a_line(tmp_path: Path) -> None:
    async with audited(tmp_path) as box:
        limits = session_pb2.SessionLimits(memory_bytes_max=128 << 20)
        session = await box.create(limits=limits)
        running = asyncio.create_task(box.run(session, "llm_query('hold')"))
        await asyncio.wait_for(box.gateway.held.wait(), 30)

        await box.table.delete(session)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await running
        await eventually(lambda: len(lines(tmp_path)) == 1)

    (line,) = lines(tmp_path)
    assert (line["session"], line["ending"]) == (session, "session_lost")


async def test_the_service_opens_its_log_anew_on_sighup(tmp_path: Path) -> None:
    """As log rotation asks for it; without that, lines would go into the file moved away."""
    path, address = tmp_path / "audit.log", tmp_path / "address"
    environment = {
        **{name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME") if name in os.environ},
        "FATHOM_SANDBOX_GUEST_CACHE": str(guest().compiled.parent),
        "FATHOM_SANDBOX_OBJECT_STORE": str(tmp_path),
        "FATHOM_SANDBOX_LISTEN": "127.0.0.1:0",
        "FATHOM_SANDBOX_ADDRESS_FILE": str(address),
        "FATHOM_SANDBOX_WORKERS": "1",
        "FATHOM_SANDBOX_REQUIRE_JAIL": "false",
        "FATHOM_SANDBOX_AUDIT_LOG": str(path),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "sandbox_service"),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=end_with_parent,
    )
    try:
        await eventually(lambda: address.exists() and bool(address.read_text()))
        path.rename(tmp_path / "moved")

        process.send_signal(signal.SIGHUP)
        await eventually(path.exists)
        async with grpc.aio.insecure_channel(address.read_text().strip()) as channel:
            stub: Any = SandboxServiceStub(channel)
            created = await stub.CreateSession(wire.CreateSessionRequest(), timeout=30)
            request = wire.ExecuteRequest(name=created.session.name, code="1")
            async for _ in stub.Execute(request, timeout=30):
                pass
    finally:
        process.terminate()
        await process.wait()

    assert [line["session"] for line in lines(tmp_path)] == [created.session.name]
    assert (tmp_path / "moved").read_text() == ""


async def test_a_log_that_cannot_be_opened_keeps_the_service_from_starting(tmp_path: Path) -> None:
    """Found out at the start, and not when the first line is missing."""
    config = SandboxConfig(audit_log=tmp_path / "missing" / "audit.log")

    with pytest.raises(ConfigError, match="audit_log"):
        await serve(config)
