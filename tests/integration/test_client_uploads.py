"""Uploads of the client to the real service, over connections that break."""

from __future__ import annotations

import asyncio
import random
import tempfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import blake3
import pytest
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom_client import channel, uploads
from fathom_client.client import Client
from fathom_client.errors import UnavailableError
from fathom_client.uploads import CHUNK_BYTES, InputFile, Upload, upload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.contexts import context_service
from tests.support.cutting_proxy import Gate, cutting_proxy
from tests.support.gateway import ManualClock
from tests.support.orchestrator import TIMEOUT_S


def documents(sizes: list[int]) -> Upload:
    """Documents of random bytes without NUL, the same for the same sizes."""
    chance = random.Random(len(sizes))
    files = tuple(
        InputFile(name=f"{number}.txt", size_bytes=size, data=chance.randbytes(size))
        for number, size in enumerate(sizes)
    )
    return Upload(kind=Context.KIND_DOCUMENTS, files=files)


async def at_once(_: float) -> None:
    """Do not wait."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(0, 1_500_000), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 2_000_000), max_size=4),
)
def test_wherever_connections_break_what_is_stored_is_what_was_sent(
    sizes: list[int], cuts: list[int]
) -> None:
    """Each stream goes on where the server's memory of the one before ends."""
    source = documents(sizes)

    async def store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with (
                context_service(Path(folder)) as stack,
                cutting_proxy(stack.address, cuts) as address,
            ):
                while True:
                    try:
                        sent = upload(address, source, pause=at_once)
                        response = await asyncio.wait_for(sent, TIMEOUT_S)
                        break
                    except UnavailableError:  # cut before anything was sent
                        continue
                listed = await stack.stub.ListDocuments(
                    pb.ListDocumentsRequest(name=response.context.name), timeout=TIMEOUT_S
                )
                found = [(d.name, d.size_bytes) for d in listed.documents]
                assert found == [(file.name, file.size_bytes) for file in source.files]
                data = await stack.read(response.context.name)
                assert data == b"".join(file.data for file in source.files)

    asyncio.run(store())


async def test_a_file_goes_on_in_the_middle_and_is_not_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"some text\n" * 2_000_000)
    size = path.stat().st_size
    files = (InputFile(name="data.txt", size_bytes=size, path=path),)
    progress: list[int] = []

    async with (
        context_service(tmp_path) as stack,
        cutting_proxy(stack.address, [12_000_000]) as address,
    ):
        response = await upload(
            address,
            Upload(kind=Context.KIND_TEXT, files=files),
            on_progress=progress.append,
            pause=at_once,
        )

    assert response.context.blake3 == blake3.blake3(path.read_bytes()).hexdigest()
    assert progress[-1] == size
    # How much was under way when the connection broke is for buffers to say.
    went_on_at = next(sent for before, sent in pairwise(progress) if sent <= before)
    assert went_on_at > 2 * CHUNK_BYTES


async def test_a_server_that_is_not_there_is_told_at_once() -> None:
    pauses: list[float] = []

    async def pause(wait_s: float) -> None:
        pauses.append(wait_s)

    with pytest.raises(UnavailableError):
        await upload("127.0.0.1:1", documents([10]), pause=pause)

    assert pauses == []


async def test_a_server_that_stays_away_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(uploads, "time", SimpleNamespace(monotonic=clock.now))

    async with context_service(tmp_path) as stack:
        proxy = cutting_proxy(stack.address, [1_500_000, *[0] * 1_000])
        async with proxy as address:
            with pytest.raises(UnavailableError):
                await upload(address, documents([4_000_000]), pause=clock.sleep, patience_s=60.0)

    assert 30 < sum(clock.slept) <= 60


@pytest.fixture
def _quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have silence noticed within seconds; what is long is the waiting only."""
    monkeypatch.setattr(channel, "_KEEPALIVE_TIME_MS", 500)
    monkeypatch.setattr(channel, "_KEEPALIVE_TIMEOUT_MS", 500)


@pytest.mark.usefixtures("_quick_pings")
async def test_an_upload_goes_on_after_the_network_fell_silent(tmp_path: Path) -> None:
    """Nothing says that a connection is gone where a machine has lost its power, or a process
    stands still: without a word of the other side the upload would wait for ever."""
    gate, source = Gate(), documents([3_000_000, 2_000_000])
    silences = 0

    def fall_silent(sent_bytes: int) -> None:
        if not silences and sent_bytes > 2_000_000:
            gate.flowing.clear()

    async def speak(_: float) -> None:
        nonlocal silences
        silences += 1
        gate.flowing.set()

    async with (
        context_service(tmp_path) as stack,
        cutting_proxy(stack.address, gate=gate) as address,
    ):
        sent = upload(address, source, on_progress=fall_silent, pause=speak)
        response = await asyncio.wait_for(sent, TIMEOUT_S)
        data = await stack.read(response.context.name)

    assert silences
    assert data == b"".join(file.data for file in source.files)


@pytest.mark.usefixtures("_quick_pings")
async def test_reading_goes_on_behind_what_came_before_the_network_fell_silent(
    tmp_path: Path,
) -> None:
    """What is read again, or left out, would be another text."""
    gate, silences = Gate(), 0
    data = random.Random(1).randbytes(8_000_000)

    async def speak(_: float) -> None:
        nonlocal silences
        silences += 1
        gate.flowing.set()

    async with (
        context_service(tmp_path) as stack,
        cutting_proxy(stack.address, gate=gate) as address,
        Client(address) as client,
    ):
        context = await stack.upload_text(data)
        read = b""
        pieces = client.contexts.read(
            context.name, offset_bytes=10, size_bytes=7_000_000, pause=speak
        )
        async for piece in pieces:
            read += piece
            if not silences:
                gate.flowing.clear()

    assert silences
    assert read == data[10:7_000_010]
