"""Indexes of contexts by reference: made once by a process of their own, kept, made anew."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import uvloop

from common.blob_index.text_index import TextIndex
from sandbox_service.context_mounts import ContextBlob, ContextMounts
from sandbox_service.errors import ContextUnreadableError
from sandbox_service.frames import Mount, Text
from sandbox_service.index_builds import make_index
from sandbox_service.limits import Limits
from sandbox_service.objects import FolderObjects, ObjectError, ObjectWriter
from tests.support.eventually import eventually

LIMITS = Limits(memory_bytes_max=64 << 20)
DATA = "l\u00edne\n".encode() * 4_000_000
JSON = b"[" + b"[1,2]," * 1_000_000 + b"3]"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were started."""
    pids: list[int] = []
    start: Callable[..., Any] = subprocess.Popen

    def noted(*command: Any, **options: Any) -> Any:
        process = start(*command, **options)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", noted)
    return pids


@pytest.fixture
def held(started: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The same; the first stands still from its start, so that it is not over too soon."""
    start: Callable[..., Any] = subprocess.Popen

    def stopped(*command: Any, **options: Any) -> Any:
        process = start(*command, **options)
        if len(started) == 1:
            process.send_signal(signal.SIGSTOP)
        return process

    monkeypatch.setattr(subprocess, "Popen", stopped)
    return started


def context(folder: Path, data: bytes = DATA, *, kind: Any = "text") -> ContextBlob:
    (folder / "blob").write_bytes(data)
    text = Text(
        name="",
        offset_bytes=0,
        size_bytes=len(data),
        characters=len(data.decode("utf-8", "replace")),
        code_point_max=0xED,
    )
    mount = Mount(variable="context", kind=kind, texts=[text])
    return ContextBlob(mount=mount, key="blob", size_bytes=len(data))


def mounts(folder: Path) -> ContextMounts:
    return ContextMounts(FolderObjects(folder), 256 << 20)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_an_index_is_made_once_and_kept(tmp_path: Path, started: list[int]) -> None:
    blob = context(tmp_path)
    before = open_files()

    for _ in range(3):
        opened = await mounts(tmp_path).open([blob], LIMITS)
        assert [mount.has_index for mount in opened.mounts] == [True]
        index = TextIndex.checked(opened.fds[1], len(DATA))
        assert index.characters_before(index.blocks) == len(DATA.decode())
        opened.close()

    assert len(started) == 1
    await eventually(lambda: open_files() <= before)


async def test_a_worker_that_is_given_a_new_index_cannot_change_it(tmp_path: Path) -> None:
    """Workers of other sessions are given the same file."""
    opened = await mounts(tmp_path).open([context(tmp_path)], LIMITS)
    _, index = opened.fds

    for change in (
        lambda: os.pwrite(index, b"changed", 64),
        lambda: os.ftruncate(index, 64),
        lambda: mmap.mmap(index, 4096),
    ):
        with pytest.raises(PermissionError):
            change()
    opened.close()


async def test_those_who_open_at_once_share_one_index(tmp_path: Path, started: list[int]) -> None:
    blob, one = context(tmp_path), mounts(tmp_path)

    every = await asyncio.gather(*(one.open([blob], LIMITS) for _ in range(8)))

    assert len(started) == 1
    for opened in every:
        assert len(opened.fds) == 2
        opened.close()


@pytest.mark.parametrize("damage", ["flip", "short", "empty"])
async def test_a_damaged_index_is_made_anew(
    tmp_path: Path, started: list[int], damage: str
) -> None:
    blob = context(tmp_path)
    (await mounts(tmp_path).open([blob], LIMITS)).close()
    path = tmp_path / "indexes" / "text" / "blob"
    good = path.read_bytes()
    path.write_bytes({"flip": good[:-1] + b"\xff", "short": good[:-8], "empty": b""}[damage])

    (await mounts(tmp_path).open([blob], LIMITS)).close()

    assert len(started) == 2
    assert path.read_bytes() == good


async def test_an_index_that_cannot_be_stored_serves_all_the_same(
    tmp_path: Path, started: list[int]
) -> None:
    """The store may be read-only for this service."""

    class ReadOnly(FolderObjects):
        def writer(self) -> ObjectWriter:
            raise ObjectError("read-only")

    one = ContextMounts(ReadOnly(tmp_path), 256 << 20)
    blob = context(tmp_path)

    for _ in range(2):
        (await one.open([blob], LIMITS)).close()

    assert len(started) == 2


async def test_an_index_is_made_to_its_end_though_its_caller_goes_away(
    tmp_path: Path, held: list[int]
) -> None:
    """Else a blob that takes longer than callers wait would never have one."""
    blob, one = context(tmp_path, JSON, kind="json"), mounts(tmp_path)
    before = open_files()
    opening = asyncio.create_task(one.open([blob], LIMITS))
    await eventually(lambda: bool(held))

    opening.cancel()
    await asyncio.wait([opening])
    os.kill(held[0], signal.SIGCONT)
    opened = await one.open([blob], LIMITS)

    assert opening.cancelled()
    assert len(held) == 1
    assert len(opened.fds) == 2
    opened.close()
    await eventually(lambda: open_files() <= before)


async def test_a_process_that_is_killed_while_it_reads_is_started_again(
    tmp_path: Path, held: list[int]
) -> None:
    """Its memory is wanted elsewhere, or its machine's owner has mistaken it: the blob is well."""
    opening = asyncio.create_task(
        mounts(tmp_path).open([context(tmp_path, JSON, kind="json")], LIMITS)
    )
    await eventually(lambda: bool(held))

    os.kill(held[0], signal.SIGKILL)
    opened = await opening

    assert len(held) == 2
    assert [mount.has_index for mount in opened.mounts] == [True]
    opened.close()


async def test_a_blob_that_each_process_dies_of_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third time it is the blob."""
    starts = 0
    start: Callable[..., Any] = subprocess.Popen

    def killed(*command: Any, **options: Any) -> Any:
        nonlocal starts
        starts += 1
        process = start(*command, **options)
        process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", killed)

    with pytest.raises(ContextUnreadableError, match="ended with -9"):
        await mounts(tmp_path).open([context(tmp_path)], LIMITS)

    assert starts == 3


async def test_the_process_that_reads_a_blob_has_nothing_of_ours_to_write_to(
    tmp_path: Path, held: list[int]
) -> None:
    """The blob is untrusted, and the service's standard error may be a log in a file."""
    one = mounts(tmp_path)
    opening = asyncio.create_task(one.open([context(tmp_path, JSON, kind="json")], LIMITS))
    await eventually(lambda: bool(held))

    assert Path(f"/proc/{held[0]}/fd/2").readlink() == Path("/dev/null")

    await one.close()
    await asyncio.wait([opening])


async def test_the_end_of_the_service_ends_the_making_of_indexes(
    tmp_path: Path, held: list[int]
) -> None:
    blob, one = context(tmp_path, JSON, kind="json"), mounts(tmp_path)
    before = open_files()
    opening = asyncio.create_task(one.open([blob], LIMITS))
    await eventually(lambda: bool(held))

    await one.close()
    await asyncio.wait([opening])

    assert opening.cancelled()
    assert not Path(f"/proc/{held[0]}").exists()
    await eventually(lambda: open_files() <= before)


_COUNT_FORKS = """
import asyncio, ctypes, os, sys
import uvloop
from sandbox_service.index_builds import make_index

forks = []
prepare = ctypes.CFUNCTYPE(None)(lambda: forks.append(1))
ctypes.CDLL(None).__register_atfork(prepare, None, None, None)
blob = os.memfd_create("blob")
os.write(blob, b"line\\n" * 10)
index = uvloop.run(make_index("text", blob, 50))
print(len(forks), os.fstat(index).st_size > 0)
"""


def test_an_index_is_made_without_a_fork_of_the_service() -> None:
    """A fork runs gRPC's handlers, whose threads were seen to end the child with SIGSEGV."""
    ran = subprocess.run(
        [sys.executable, "-c", _COUNT_FORKS], capture_output=True, text=True, check=True
    )

    assert ran.stdout == "0 True\n"


def test_nothing_is_closed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it would be what another thread had opened meanwhile, under that number."""
    closed: list[bool] = []
    start: Callable[..., Any] = subprocess.Popen

    def watched(*command: Any, **options: Any) -> Any:
        process = start(*command, **options)
        output, close = process.stdout, process.stdout.close

        def close_and_note() -> None:
            closed.append(Path(f"/proc/self/fd/{fd}").exists())
            close()

        fd = output.fileno()
        process.stdout = Mock(wraps=output, close=close_and_note)
        return process

    monkeypatch.setattr(subprocess, "Popen", watched)
    (tmp_path / "blob").write_bytes(b"a line\n" * 1_000)
    with (tmp_path / "blob").open("rb") as blob:
        os.close(uvloop.run(make_index("text", blob.fileno(), 7_000)))

    assert closed == [True]


async def test_what_cannot_be_indexed_is_unreadable(tmp_path: Path) -> None:
    blob = context(tmp_path, JSON[:-1], kind="json")
    before = open_files()

    with pytest.raises(ContextUnreadableError, match="not JSON: no ',' at byte"):
        await mounts(tmp_path).open([blob], LIMITS)

    await eventually(lambda: open_files() <= before)
    assert not (tmp_path / "indexes").exists()


async def test_a_session_that_comes_back_opens_what_it_reads_and_nothing_else(
    tmp_path: Path, started: list[int]
) -> None:
    """What was loaded is in the session's memory: its blob need not even be there."""
    lazy = context(tmp_path)
    loaded = context(tmp_path, b"small")
    (tmp_path / "blob").write_bytes(DATA)
    one = mounts(tmp_path)
    opened = await one.open([lazy], LIMITS)
    marked = ContextBlob(mount=opened.mounts[0], key="blob", size_bytes=len(DATA))
    opened.close()
    gone = ContextBlob(mount=loaded.mount, key="gone", size_bytes=5)

    again = await one.reopen([gone, marked])

    assert [mount.has_index for mount in again.mounts] == [False, True]
    assert [os.fstat(fd).st_size for fd in again.fds[:2]] == [0, len(DATA)]
    assert len(again.fds) == 3
    assert len(started) == 1
    again.close()
