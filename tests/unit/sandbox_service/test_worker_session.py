"""A session's protocol: which frames a worker may send when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sandbox_service import frames
from sandbox_service.limits import Limits
from sandbox_service.worker_session import OpenFailedError, WorkerLostError, WorkerSession


class Wire:
    """Keeps what is sent to the worker."""

    def __init__(self) -> None:
        self.sent: list[frames.ToWorker] = []
        self.killed: list[str] = []

    async def send(self, frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
        self.sent.append(frame)


def ended(execution: int = 1) -> frames.Ended:
    return frames.Ended(
        session=1,
        execution=execution,
        ending="completed",
        state_kept=True,
        failure=None,
        final=None,
        variables=[],
        output_bytes=0,
        output_bytes_dropped=0,
        own_time_s=0.0,
        wait_time_s=0.0,
        fuel_used=0,
        memory_bytes=0,
    )


def sub_calls(call: int = 1) -> frames.SubCalls:
    return frames.SubCalls(
        session=1,
        execution=1,
        call=call,
        question=frames.Question(
            prompts=[[frames.Message("user", "?")]],
            is_batch=False,
            tier="sub",
            output_tokens_max=None,
            temperature=None,
        ),
    )


def output(text: str = "x", execution: int = 1) -> frames.Output:
    return frames.Output(session=1, execution=execution, stream="stdout", text=text)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def session(wire: Wire) -> WorkerSession:
    """A session that is open and idle."""
    limits = Limits(output_bytes_max=10)
    session = WorkerSession(1, limits, wire.send, wire.killed.append)
    session.receive(frames.Opened(session=1, memory_bytes=1))
    await session.opened()
    return session


async def running(session: WorkerSession) -> WorkerSession:
    await session.run(1, "x", report_variables=False)
    return session


async def test_a_cell_ends_and_another_may_follow(session: WorkerSession) -> None:
    for execution in (1, 2):
        await session.run(execution, "x", report_variables=False)
        session.receive(ended(execution))

        assert await session.next_frame() == ended(execution)


async def test_an_idle_session_may_not_speak(session: WorkerSession) -> None:
    """Frames out of order are those of a worker that is no longer ours."""
    for frame in (output(execution=0), ended(0)):
        with pytest.raises(frames.FrameError, match="while idle"):
            session.receive(frame)


async def test_a_frame_of_another_execution_is_refused(session: WorkerSession) -> None:
    await running(session)

    with pytest.raises(frames.FrameError, match="another execution"):
        session.receive(output(execution=2))


async def test_a_session_that_waits_for_sub_calls_may_only_end(session: WorkerSession) -> None:
    """An interrupt ends the wait; nothing else happens meanwhile."""
    await running(session)
    session.receive(sub_calls())

    with pytest.raises(frames.FrameError, match="while waiting"):
        session.receive(output())
    with pytest.raises(frames.FrameError, match="while waiting"):
        session.receive(sub_calls(2))
    session.receive(ended())


async def test_sub_calls_count_up(session: WorkerSession) -> None:
    await running(session)

    with pytest.raises(frames.FrameError, match="out of order"):
        session.receive(sub_calls(call=2))


async def test_an_answer_that_comes_too_late_is_not_sent(
    session: WorkerSession, wire: Wire
) -> None:
    """The cell was interrupted while the sub-model answered."""
    await running(session)
    session.receive(sub_calls())
    session.receive(ended())

    await session.answer(1, [frames.Answer("late")])

    assert not [frame for frame in wire.sent if isinstance(frame, frames.SubCallAnswers)]


@pytest.mark.parametrize(("size", "is_allowed"), [(10, True), (11, False)])
async def test_output_beyond_the_limit_is_not_pythons(
    session: WorkerSession, size: int, is_allowed: bool
) -> None:
    """The worker cuts output at the limit; one that does not is not to be trusted."""
    await running(session)

    if is_allowed:
        session.receive(output("x" * size))
    else:
        with pytest.raises(frames.FrameError, match="limit"):
            session.receive(output("x" * size))


async def test_frames_on_their_way_are_dropped_once_it_is_closed(session: WorkerSession) -> None:
    """Closing and writing cross each other on the wire."""
    await running(session)
    await session.close()

    session.receive(output())
    session.receive(ended())
    assert not session.is_gone
    session.receive(frames.Closed(session=1))

    assert session.is_gone


async def test_closing_twice_sends_one_frame(session: WorkerSession, wire: Wire) -> None:
    await session.close()
    await session.close()

    assert wire.sent == [frames.Close(session=1)]


async def test_a_lost_session_says_why(session: WorkerSession) -> None:
    await running(session)
    session.lose("its worker died")

    for _ in range(2):
        with pytest.raises(WorkerLostError, match="its worker died"):
            await session.next_frame()


async def test_an_interrupt_goes_to_the_running_execution_only(
    session: WorkerSession, wire: Wire
) -> None:
    await session.interrupt()
    await running(session)
    await session.interrupt()

    assert wire.sent[1:] == [frames.Interrupt(session=1, execution=1)]


async def test_a_session_that_cannot_open_says_why(wire: Wire) -> None:
    session = WorkerSession(1, Limits(), wire.send, wire.killed.append)
    failed = frames.OpenFailed(session=1, problem="too_large", variable="context", message="big")
    session.receive(failed)

    with pytest.raises(OpenFailedError) as caught:
        await session.opened()

    assert caught.value.failed == failed
