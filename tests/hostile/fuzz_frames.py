"""Fuzzes, guided by coverage, what the supervisor makes of a worker and a worker of its guests.

No test and no dependency: it needs the `atheris` package, and goes on until it is stopped.

    python -m tests.hostile.fuzz_frames corpus_folder -max_total_time=600

The first byte of an input chooses what is attacked. An exception that is not the one for a
broken protocol is a find; its input is left in a file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sandbox_service import frames
from sandbox_service.limits import Limits
from sandbox_service.worker import guest_calls
from sandbox_service.worker_session import WorkerSession
from tests.hostile.puppet_worker import ended, output

_LIMITS = Limits(output_bytes_max=100)
SEEDS = (
    b"\x00" + frames.encode(output()) + frames.encode(ended()),
    b"\x01" + frames.encode(frames.Run(session=1, execution=1, code="x", report_variables=True)),
    b'\x02{"call":"read","mount":0,"text":0,"start":0,"stop":9}',
    b'\x02{"call":"ended","ending":"raised","error":null,"final":null,"variables":[]}',
    b"\x03\x00\x01\x02\x13\x05\x14\x11",
)
"""One of each kind, from which inputs are made; the last one is a session from its beginning."""


def attempt(data: bytes) -> None:
    """Attack with one input; raises what must not come out of it."""
    if not data:
        return
    content = data[1:]
    try:
        if data[0] % 4 == 0:
            _decode(frames.FromWorker, content)
        elif data[0] % 4 == 1:
            _decode(frames.ToWorker, content)
        elif data[0] % 4 == 2:
            guest_calls.decode(content)
        else:
            _converse(content)
    except frames.FrameError:
        return


def _decode(direction: Any, content: bytes) -> None:
    """Decode frames; what was understood can be said again, and is understood alike."""
    for frame in frames.FrameReader(direction).feed(content):
        again = frames.encode(frame)  # type: ignore[arg-type]  # it is of the direction
        assert list(frames.FrameReader(direction).feed(again)) == [frame]


def _converse(program: bytes) -> None:
    """Have a worker say what each byte stands for, while its session is used as ever."""
    session = WorkerSession(1, _LIMITS, _sent, lambda _: None)
    for frame in _spoken(program):
        if frame is None:
            _finish(session.run(1, "x", report_variables=False))
        else:
            session.receive(frame)


def _spoken(program: bytes) -> Iterator[frames.FromWorker | None]:
    for byte in program:
        kind, number = byte % 8, byte >> 4
        question = frames.Question(
            prompts=[[frames.Message("user", "x")]],
            is_batch=False,
            tier="",
            output_tokens_max=None,
            temperature=None,
        )
        yield (
            frames.Opened(session=1, memory_bytes=number),
            frames.Saved(session=1, execution=number),
            None,
            output(1, number),
            ended(1, number),
            frames.SubCalls(session=1, execution=1, call=number + 1, question=question),
            frames.Closed(session=1),
            frames.Lost(session=1, cause="x"),
        )[kind]


async def _sent(frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
    """Take a frame: there is nobody that it could go to."""


def _finish(coroutine: Any) -> None:
    """Run what never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def main() -> None:
    """Fuzz until stopped, as atheris's arguments say; exits with a line where it is missing."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris, into an environment of its own")
    folders = [Path(name) for name in sys.argv[1:] if not name.startswith("-")]
    for number, seed in enumerate(SEEDS):
        for folder in folders:
            folder.mkdir(exist_ok=True)
            (folder / f"seed-{number}").write_bytes(seed)
    atheris.instrument_all()
    atheris.Setup(sys.argv, attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
