"""Uploads to a real orchestrator process: what it takes in memory, and what a kill leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import blake3
import grpc
import pytest
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1 import context_service_pb2_grpc
from fathom.orchestrator.v1.context_pb2 import Context

from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import chunk, start

MIB = 1 << 20
LINE = b"an uploaded line of text, as there are many of them in a large file\n"
PIECE = (LINE * (MIB // len(LINE) + 1))[:MIB]
RSS_BYTES_MAX = 300 * MIB


class Orchestrator:
    """A process with its state in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._address_file = folder / "address"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Run it, until it listens."""
        self._address_file.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "FATHOM_ORCHESTRATOR_LISTEN": "127.0.0.1:0",
            "FATHOM_ORCHESTRATOR_ADDRESS_FILE": str(self._address_file),
            "FATHOM_ORCHESTRATOR_OBJECT_STORE": str(self.folder / "objects"),
            "FATHOM_ORCHESTRATOR_DATABASE_URL": f"sqlite+aiosqlite:///{self.folder}/o.sqlite",
            "FATHOM_ORCHESTRATOR_RUN_TOKEN_KEY": TOKEN_KEY,
        }
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator"],
                env=environment,
                stderr=log,
                preexec_fn=end_with_parent,
            )
        await eventually(self._is_up, within_s=60)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._address_file.read_text().strip()

    @property
    def rss_bytes_max(self) -> int:
        """The most memory that it has had."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        return self._address_file.exists()


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[Orchestrator]:
    process = Orchestrator(tmp_path)
    yield process
    process.kill()


def messages(upload_id: str, first: int, last: int) -> Iterator[pb.UploadContextRequest]:
    yield start(Context.KIND_TEXT, upload_id=upload_id)
    for number in range(first, last):
        yield chunk(PIECE, number * MIB)


async def test_a_large_upload_takes_little_memory(orchestrator: Orchestrator) -> None:
    """A gigabyte, of which no more than pieces are ever held."""
    await orchestrator.start()
    digest = blake3.blake3()
    for _ in range(1024):
        digest.update(PIECE)

    with grpc.insecure_channel(orchestrator.address) as channel:
        stub = context_service_pb2_grpc.ContextServiceStub(channel)
        context = stub.UploadContext(messages("", 0, 1024), timeout=100).context

    assert (context.size_bytes, context.blake3) == (1 << 30, digest.hexdigest())
    assert context.characters == 1 << 30
    assert orchestrator.rss_bytes_max < RSS_BYTES_MAX


async def test_what_is_stored_is_not_for_every_user_of_the_machine(
    orchestrator: Orchestrator,
) -> None:
    """Contexts are other people's documents."""
    await orchestrator.start()
    async with grpc.aio.insecure_channel(orchestrator.address) as channel:
        text = iter([start(Context.KIND_TEXT), chunk(LINE, 0)])
        stub = context_service_pb2_grpc.ContextServiceStub(channel)
        await stub.UploadContext(text, timeout=100)

    stored = [path for path in orchestrator.folder.rglob("*") if path.is_file()]
    modes = {path.name: path.stat().st_mode & 0o007 for path in stored if path.name != "log"}
    assert any(path.read_bytes() == LINE for path in stored)
    assert set(modes.values()) == {0}, modes


async def test_an_upload_outlives_a_killed_orchestrator(orchestrator: Orchestrator) -> None:
    """What was kept on the way is not sent again."""
    upload_id = str(uuid.uuid4())
    await orchestrator.start()
    async with grpc.aio.insecure_channel(orchestrator.address) as channel:
        stub = context_service_pb2_grpc.ContextServiceStub(channel)
        call = stub.UploadContext(timeout=100)
        for message in messages(upload_id, 0, 400):
            await call.write(message)
        orchestrator.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    await orchestrator.start()

    async with grpc.aio.insecure_channel(orchestrator.address) as channel:
        stub = context_service_pb2_grpc.ContextServiceStub(channel)
        kept = (
            await stub.GetUpload(pb.GetUploadRequest(upload_id=upload_id), timeout=30)
        ).bytes_kept
        rest = messages(upload_id, kept // MIB, 420)
        context = (await stub.UploadContext(rest, timeout=100)).context

    digest = blake3.blake3()
    for _ in range(420):
        digest.update(PIECE)
    assert kept >= 128 * MIB
    assert kept % MIB == 0
    assert context.blake3 == digest.hexdigest()
