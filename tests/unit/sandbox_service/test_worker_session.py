"""A session's protocol: which frames a worker may send when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sandbox_service import frames
from sandbox_service.limits import Limits
from sandbox_service.worker_session import OpenFailedError, WorkerLostError, WorkerSession
from tests.support.eventually import eventually


class Wire:
    """Keeps what is sent to the worker."""

    def __init__(self) -> None:
        self.sent: list[frames.ToWorker] = []
        self.killed: list[str] = []

    async def send(self, frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
        self.sent.append(frame)


def saved(execution: int) -> frames.Saved:
    return frames.Saved(session=1, execution=execution)


def ended(execution: int = 1, ending: frames.Ending = "completed") -> frames.Ended:
    return frames.Ended(
        session=1,
        execution=execution,
        ending=ending,
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
    session.receive(saved(0))
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
        session.receive(saved(execution))


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


async def test_a_worker_that_does_not_close_a_session_in_time_is_ended(
    session: WorkerSession, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what runs there would go on for ever, and nobody would know."""
    monkeypatch.setattr("sandbox_service.worker_session._CLOSE_TIMEOUT_S", 0.01)

    await session.close()

    await eventually(lambda: wire.killed == ["a worker did not close a session in time"])


async def test_a_worker_that_closes_a_session_in_time_goes_on(
    session: WorkerSession, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_service.worker_session._CLOSE_TIMEOUT_S", 0.01)
    slow_ones: list[str] = []
    slow = WorkerSession(2, Limits(), wire.send, slow_ones.append)
    await session.close()
    await slow.close()

    session.receive(frames.Closed(session=1))

    await eventually(lambda: len(slow_ones) == 1)  # whose time was over after the other's
    assert not wire.killed


async def test_a_session_that_is_closed_cannot_speak_for_ever(
    session: WorkerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody counts what it says any more, and the service has to read all of it."""
    monkeypatch.setattr("sandbox_service.worker_session._LATE_FRAMES_MAX", 3)
    await session.close()
    for _ in range(3):
        session.receive(output())

    with pytest.raises(frames.FrameError, match="does not end"):
        session.receive(output())


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


async def test_a_cell_may_be_sent_before_the_one_before_it_is_saved(
    session: WorkerSession,
) -> None:
    """The worker takes it when it has written down what the first one changed."""
    await running(session)
    session.receive(ended())

    await session.run(2, "x", report_variables=False)
    assert not session.is_saved
    session.receive(saved(1))
    session.receive(output(execution=2))

    assert session.is_saved


async def test_a_cell_does_not_run_before_the_one_before_it_is_saved(
    session: WorkerSession,
) -> None:
    await running(session)
    session.receive(ended())
    await session.run(2, "x", report_variables=False)

    with pytest.raises(frames.FrameError, match="before Saved"):
        session.receive(ended(2))


@pytest.mark.parametrize("execution", [0, 2])
async def test_what_is_saved_is_the_last_execution(session: WorkerSession, execution: int) -> None:
    await running(session)
    session.receive(ended())

    with pytest.raises(frames.FrameError, match="Saved of another execution"):
        session.receive(saved(execution))


async def test_nothing_is_saved_twice(session: WorkerSession) -> None:
    with pytest.raises(frames.FrameError, match="Saved of another execution"):
        session.receive(saved(0))


async def test_a_worker_cannot_tell_that_it_died(session: WorkerSession) -> None:
    """That ending is the supervisor's own."""
    await running(session)

    with pytest.raises(frames.FrameError, match="told by itself"):
        session.receive(ended(1, "worker_lost"))


async def test_a_session_goes_on_elsewhere_unless_its_worker_died_while_it_wrote(
    session: WorkerSession,
) -> None:
    """Between Ended and Saved the layers are half of one state and half of another."""
    await running(session)
    assert session.can_go_on
    session.receive(ended())
    assert not session.can_go_on
    session.receive(saved(1))
    assert session.can_go_on

    session.lose("its worker died")

    assert session.can_go_on


async def test_a_session_that_died_of_its_own_code_does_not_go_on(session: WorkerSession) -> None:
    """Its layers hold what broke it."""
    await running(session)

    session.receive(frames.Lost(session=1, cause="broken", is_broken=True))

    assert (session.loss, session.can_go_on) == ("broken", False)


async def test_a_fault_of_the_worker_does_not_end_a_session(session: WorkerSession) -> None:
    """Another worker may have the memory, threads or files that this one has not."""
    await running(session)

    session.receive(frames.Lost(session=1, cause="no thread left"))

    assert (session.loss, session.can_go_on) == ("no thread left", True)


@pytest.mark.parametrize(("is_certain", "can_go_on"), [(True, True), (False, False)])
async def test_a_session_that_ran_goes_on_only_where_all_frames_were_seen(
    session: WorkerSession, is_certain: bool, can_go_on: bool
) -> None:
    """An Ended that was never read may have been on its way, and the writing begun."""
    await running(session)

    session.lose("its worker died", is_certain=is_certain)

    assert session.can_go_on is can_go_on


async def test_waiting_for_a_save_that_never_comes_ends_the_worker(
    session: WorkerSession, wire: Wire
) -> None:
    await running(session)
    session.receive(ended())
    waiting = asyncio.create_task(session.saved(0.01))
    await eventually(lambda: bool(wire.killed))
    session.lose("killed")

    with pytest.raises(WorkerLostError, match="killed"):
        await waiting
    assert "did not save" in wire.killed[0]


async def test_a_restored_session_is_saved_from_the_start(wire: Wire) -> None:
    """Its layers hold it, whatever happens to the worker that opens it."""
    session = WorkerSession(1, Limits(), wire.send, wire.killed.append, is_restored=True)
    session.receive(frames.Opened(session=1, memory_bytes=1))

    with pytest.raises(frames.FrameError, match="Saved"):
        session.receive(saved(0))
    assert session.can_go_on
