"""What a worker may say of what its session takes, and how deep its frames may go."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from sandbox_service import frames
from sandbox_service.limits import Limits
from sandbox_service.worker import guest_calls
from sandbox_service.worker_session import WorkerSession

MEMORY_MAX = 1 << 30
LINES_MAX = 3
OPENED_BYTES = 40 << 20
NESTING = 1_000_000


@pytest.fixture
async def session() -> WorkerSession:
    """A session whose cell is running."""

    async def send(frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
        pass

    limits = Limits(memory_bytes_max=MEMORY_MAX, output_lines_max=LINES_MAX)
    session = WorkerSession(1, limits, send, lambda cause: None)
    session.receive(frames.Opened(session=1, memory_bytes=OPENED_BYTES))
    session.receive(frames.Saved(session=1, execution=0))
    await session.run(1, "code", report_variables=False)
    return session


def grown(memory_bytes: int) -> frames.Grown:
    return frames.Grown(session=1, execution=1, memory_bytes=memory_bytes)


async def test_what_a_running_cell_has_taken_is_known(session: WorkerSession) -> None:
    for memory_bytes in (OPENED_BYTES + frames.GROWTH_BYTES, MEMORY_MAX):
        session.receive(grown(memory_bytes))

        assert session.memory_bytes == memory_bytes


@pytest.mark.parametrize(
    "memory_bytes", [0, OPENED_BYTES + frames.GROWTH_BYTES - 1, MEMORY_MAX + 1]
)
async def test_a_growth_that_cannot_be_is_refused(
    session: WorkerSession, memory_bytes: int
) -> None:
    """Else a worker could keep the supervisor busy with nothing."""
    with pytest.raises(frames.FrameError, match="growth"):
        session.receive(grown(memory_bytes))


async def test_a_growth_of_an_idle_session_is_refused() -> None:
    async def send(frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
        pass

    session = WorkerSession(1, Limits(), send, lambda cause: None)

    with pytest.raises(frames.FrameError):
        session.receive(grown(OPENED_BYTES))


@pytest.mark.parametrize(("lines", "is_taken"), [(LINES_MAX, True), (LINES_MAX + 1, False)])
async def test_lines_beyond_the_limit_are_not_pythons(
    session: WorkerSession, lines: int, is_taken: bool
) -> None:
    def receive() -> None:
        for _ in range(lines):
            session.receive(frames.Output(session=1, execution=1, stream="stdout", text="a\n"))

    if is_taken:
        receive()
    else:
        with pytest.raises(frames.FrameError, match="more lines"):
            receive()


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a"], ids=["lists", "maps"])
def test_a_frame_that_is_nested_too_deeply_is_an_error(opener: bytes) -> None:
    """And no overflow of the supervisor's stack."""
    payload = b"\x82" + b"\xa4type\xa5ended" + b"\xa9variables" + opener * NESTING
    reader = frames.FrameReader(frames.FromWorker)

    with pytest.raises(frames.FrameError):
        list(reader.feed(struct.pack("<I", len(payload)) + payload))


def test_a_frame_with_a_text_that_is_none_is_an_error() -> None:
    payload = b"\x82" + b"\xa4type\xa5ended" + b"\xa6ending\xa2\xff\xfe"
    reader = frames.FrameReader(frames.FromWorker)

    with pytest.raises(frames.FrameError):
        list(reader.feed(struct.pack("<I", len(payload)) + payload))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"[" * NESTING,
        b'{"a":' * NESTING,
        b'{"call":"ended","variables":' + b"[" * NESTING,
        b'{"call":"sub_calls","ignored":' + b"[" * NESTING + b"]" * NESTING + b"}",
    ],
)
def test_a_request_that_is_nested_too_deeply_is_none(request_bytes: bytes) -> None:
    assert guest_calls.decode(request_bytes) is None
