"""The making of indexes: by a process each, few at a time, once for all who wait for it.

Nothing is known here of where blobs and indexes are stored.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Coroutine
from typing import Any, Literal

from common.blob_index.json_index import JsonIndex
from common.blob_index.text_index import IndexFormatError, TextIndex

IndexKind = Literal["text", "json"]
_TIME_S = 60.0
_BYTES_PER_S = 20e6
"""How long an index may take: a fixed time, and the blob's size over this."""
_PROBLEM_BYTES = 1_000
"""Of why there is no index; what is beyond that is dropped."""
_READ_BYTES = 16 << 10
_TRIES_MAX = 3
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class IndexBuild:
    """The making of one index, for all who wait for it. It goes on when they have gone: a large
    blob takes longer than many a caller's patience, and the next one finds it made."""

    def __init__(self, making: Coroutine[Any, Any, int]) -> None:
        """Begin to make an index, whose open file it takes over."""
        self.task = asyncio.create_task(making)
        """Makes it."""
        self._waiting = 0
        self._is_let_go = False
        self.task.add_done_callback(lambda _: self._let_go())

    async def index_fd(self) -> int:
        """Return the index, open, for the caller to close; raises IndexFormatError."""
        self._waiting += 1
        try:
            return os.dup(await asyncio.shield(self.task))
        finally:
            self._waiting -= 1
            self._let_go()

    def _let_go(self) -> None:
        """Close the index once it is made and everybody has got it."""
        if self._waiting or not self.task.done() or self._is_let_go:
            return
        self._is_let_go = True
        if not self.task.cancelled() and self.task.exception() is None:
            os.close(self.task.result())


async def make_index(kind: IndexKind, blob_fd: int, size_bytes: int) -> int:
    """Have a process index a blob; return an open file in memory, for the caller to close.

    Raises IndexFormatError where the blob cannot be indexed, with the reason.
    """
    index_fd = os.memfd_create("index", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        problem = await _run_indexer(kind, blob_fd, size_bytes, index_fd)
        if problem:
            raise IndexFormatError(problem)
        # Workers get this very file, several of them the same one.
        fcntl.fcntl(index_fd, fcntl.F_ADD_SEALS, _SEALS)
        await asyncio.to_thread(check_index, kind, index_fd, size_bytes)
    except BaseException:
        os.close(index_fd)
        raise
    return index_fd


def check_index(kind: IndexKind, index_fd: int, size_bytes: int) -> None:
    """Raise IndexFormatError unless a file is the whole index of a blob of this size."""
    index = JsonIndex if kind == "json" else TextIndex
    index.checked(index_fd, size_bytes)


async def _run_indexer(kind: IndexKind, blob_fd: int, size_bytes: int, index_fd: int) -> str:
    """Run the process that makes an index, again where it is killed, as by a kernel short of
    memory; returns why there is none, or nothing."""
    for _ in range(_TRIES_MAX):
        os.ftruncate(index_fd, 0)
        status, said = await _run_once(kind, blob_fd, size_bytes, index_fd)
        if status >= 0:
            break
    return f"the process that reads it ended with {status}" if status else said


async def _run_once(
    kind: IndexKind, blob_fd: int, size_bytes: int, index_fd: int
) -> tuple[int, str]:
    """Run the process; returns its status, and why there is no index, or nothing."""
    # By subprocess, which does without fork: the loop's own way runs gRPC's handlers of a fork,
    # whose threads can end the child before it has begun.
    process = subprocess.Popen(  # noqa: ASYNC220  # it returns as soon as the child runs
        [
            *(sys.executable, "-I", "-m", "sandbox_service.indexer"),
            *(kind, str(blob_fd), str(index_fd), str(os.getpid())),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # ours may be a log in a file, which it could wipe
        pass_fds=(blob_fd, index_fd),
        env={},
        cwd="/",
    )
    try:
        async with asyncio.timeout(_TIME_S + size_bytes / _BYTES_PER_S):
            said = await _said(process)
            await asyncio.to_thread(process.wait)
    except TimeoutError:
        return 0, "reading it took too long"
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
    return process.returncode, said.decode("utf-8", "replace").strip()


async def _said(process: subprocess.Popen[bytes]) -> bytes:
    """Return the beginning of what a process prints, once it has closed its output.

    Not by a transport: uvloop's closes the number of a pipe's file twice, and what another thread
    has opened meanwhile with it.
    """
    loop, ended, said = asyncio.get_running_loop(), asyncio.Event(), bytearray()
    assert process.stdout is not None
    fd = process.stdout.fileno()

    def read() -> None:
        data = os.read(fd, _READ_BYTES)
        said.extend(data[: _PROBLEM_BYTES - len(said)])
        if not data:
            loop.remove_reader(fd)
            ended.set()

    loop.add_reader(fd, read)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        process.stdout.close()
    return bytes(said)
