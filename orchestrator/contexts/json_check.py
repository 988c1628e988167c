"""Whether bytes that stream by are one JSON value: small ones are parsed when they are whole, large
ones by a process that never holds them, bounded in memory, and makes their index on the way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NoReturn

import orjson

from common.errors import InvalidFieldError

SMALL_BYTES_MAX = 4 << 20
"""Parsed here; it takes a few times its size for a moment."""
_FINISH_S = 600.0
_PROBLEM_BYTES = 1_000


class JsonCheck:
    """The check of one JSON value. Its methods block, `feed` for as long as the check takes."""

    def __init__(self) -> None:
        self._small = bytearray()
        self._process: _CheckProcess | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raises InvalidFieldError where they cannot go on to be JSON."""
        if self._process is None:
            self._small += data
            if len(self._small) <= SMALL_BYTES_MAX:
                return
            self._process = _CheckProcess()
            data = bytes(self._small)
            self._small.clear()
        self._process.feed(data)

    def finish(self) -> None:
        """Take the end; raises InvalidFieldError where it is no JSON."""
        if self._process is not None:
            self._process.finish()
            return
        try:
            orjson.loads(self._small)
        except orjson.JSONDecodeError as error:
            _refuse(f"line {error.lineno}, column {error.colno}")

    def index(self) -> bytes | None:
        """Return the index of what has been finished; None for what is too small for one."""
        return None if self._process is None else self._process.index()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.close()


class _CheckProcess:
    def __init__(self) -> None:
        self._index_fd = os.memfd_create("index", os.MFD_CLOEXEC)
        # By subprocess, which does without fork: gRPC's handlers of a fork can end the child.
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-m", "orchestrator.contexts.json_process"),
                str(self._index_fd),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._index_fd,),
            env={},
            cwd="/",
            bufsize=0,
        )

    def feed(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except BrokenPipeError:
            self.finish()
            raise AssertionError("the process has ended without a word") from None

    def finish(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        problem = self._process.stdout.read(_PROBLEM_BYTES)
        returned = self._process.wait(_FINISH_S)
        if problem:
            _refuse(problem.decode("utf-8", "replace").strip())
        if returned:
            _refuse(f"the process that checks it ended with {returned}")

    def index(self) -> bytes:
        size = os.fstat(self._index_fd).st_size
        return os.pread(self._index_fd, size, 0)

    def close(self) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        if self._index_fd >= 0:
            os.close(self._index_fd)
            self._index_fd = -1


def _refuse(problem: str) -> NoReturn:
    raise InvalidFieldError("chunk.data", f"is no JSON: {problem.removeprefix('not JSON: ')}")
