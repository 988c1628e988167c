"""An execution's time and output inside a worker."""

from __future__ import annotations

import threading
import time
import types

import pytest

from sandbox_service.frames import OUTPUT_TEXT_MAX, Determinism
from sandbox_service.limits import Limits
from sandbox_service.worker.execution import Execution, OutputBuffer, StopError
from sandbox_service.worker.surroundings import FixedSurroundings

LINES = 1000


class Sent:
    """Keeps what an execution sends."""

    def __init__(self) -> None:
        self.chunks: list[tuple[str, str]] = []

    def __call__(self, stream: str, text: str) -> None:
        if text:
            self.chunks.append((stream, text))


@pytest.fixture
def sent() -> Sent:
    return Sent()


def write(output: OutputBuffer, stream: int, data: bytes) -> None:
    """Write as WASI does: only what there is room for is copied."""
    output.write(stream, data[: output.room_bytes], len(data))


def test_small_writes_are_sent_as_one(sent: Sent) -> None:
    output = OutputBuffer(100, LINES, sent)
    for piece in (b"a", b"b", b"c"):
        write(output, 1, piece)
    output.flush()

    assert sent.chunks == [("stdout", "abc")]


def test_streams_keep_their_order(sent: Sent) -> None:
    output = OutputBuffer(100, LINES, sent)
    for stream in (1, 2, 2, 1):
        write(output, stream, b"x")
    output.finish()

    assert sent.chunks == [("stdout", "x"), ("stderr", "xx"), ("stdout", "x")]


def test_a_character_written_in_two_pieces_is_whole(sent: Sent) -> None:
    output = OutputBuffer(100, LINES, sent)
    write(output, 1, "€".encode()[:2])
    output.flush()
    write(output, 1, "€".encode()[2:])
    output.finish()

    assert sent.chunks == [("stdout", "€")]


def test_bytes_that_are_no_utf8_are_replaced(sent: Sent) -> None:
    output = OutputBuffer(100, LINES, sent)
    write(output, 1, b"a\xffb\xe2")
    output.finish()

    assert "".join(text for _, text in sent.chunks) == "a\ufffdb\ufffd"


@pytest.mark.parametrize(("size", "kept", "dropped"), [(10, 10, 0), (11, 10, 1)])
def test_output_is_cut_at_its_limit(sent: Sent, size: int, kept: int, dropped: int) -> None:
    output = OutputBuffer(10, LINES, sent)
    write(output, 1, b"x" * size)
    output.finish()

    assert sent.chunks == [("stdout", "x" * kept)]
    assert (output.written_bytes, output.dropped_bytes) == (size, dropped)


def test_the_limit_counts_both_streams(sent: Sent) -> None:
    output = OutputBuffer(10, LINES, sent)
    write(output, 1, b"x" * 6)
    write(output, 2, b"y" * 6)
    output.finish()

    assert sent.chunks == [("stdout", "x" * 6), ("stderr", "y" * 4)]


def test_much_output_is_sent_in_frames_of_a_size(sent: Sent) -> None:
    output = OutputBuffer(1 << 30, LINES, sent)
    write(output, 1, b"x" * (2 * OUTPUT_TEXT_MAX + 1))
    output.finish()

    assert [len(text) for _, text in sent.chunks] == [OUTPUT_TEXT_MAX, OUTPUT_TEXT_MAX, 1]


def test_a_tick_sends_what_waits(sent: Sent) -> None:
    execution = Execution(1, Limits(), sent)
    write(execution.output, 1, b"x")
    execution.on_tick()

    assert sent.chunks == [("stdout", "x")]


def test_a_tick_after_an_interrupt_stops(sent: Sent) -> None:
    execution = Execution(1, Limits(), sent)
    execution.on_tick()
    execution.interrupt()

    with pytest.raises(StopError) as caught:
        execution.on_tick()

    assert caught.value.ending == "interrupted"


def test_a_tick_after_the_time_stops(sent: Sent) -> None:
    with pytest.raises(StopError) as caught:
        Execution(1, Limits(execute_time_max_s=0.0), sent).on_tick()

    assert caught.value.ending == "timed_out"


def test_waiting_is_not_own_time(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr("sandbox_service.worker.execution.time", clock)
    execution = Execution(1, Limits(execute_time_max_s=5.0), sent)
    clock.now_s = 2.0
    with execution.waiting():
        clock.now_s = 12.0
    execution.on_tick()

    assert execution.wait_time_s == 10.0
    assert execution.own_time_s == 2.0


def test_a_sleep_ends_with_the_time(sent: Sent) -> None:
    execution = Execution(1, Limits(execute_time_max_s=0.05), sent)
    started = time.monotonic()

    with pytest.raises(StopError):
        execution.sleep(60)

    assert time.monotonic() - started < 30


def test_a_sleep_ends_with_an_interrupt(sent: Sent) -> None:
    execution = Execution(1, Limits(), sent)
    threading.Timer(0.02, execution.interrupt).start()

    with pytest.raises(StopError) as caught:
        execution.sleep(60)

    assert caught.value.ending == "interrupted"


def test_a_question_waits_for_no_half_character(sent: Sent) -> None:
    """The peer takes no output between a question and its answer."""
    execution = Execution(1, Limits(), sent)
    write(execution.output, 1, b"a\xe2")
    with execution.waiting():
        assert "".join(text for _, text in sent.chunks) == "a\ufffd"
    execution.output.finish()

    assert "".join(text for _, text in sent.chunks) == "a\ufffd"


def test_a_stopped_execution_asks_nothing(sent: Sent) -> None:
    """An interrupt that came before the question would not end the wait for its answer."""
    execution = Execution(1, Limits(), sent)
    execution.interrupt()

    with pytest.raises(StopError), execution.waiting():
        raise AssertionError("the question was asked")


def test_streams_that_alternate_too_often_are_joined(sent: Sent) -> None:
    """Nothing is lost or changed but the order between the two."""
    output = OutputBuffer(1 << 20, LINES, sent)
    for _ in range(5000):
        write(output, 1, b"a")
        write(output, 2, b"b")
    output.finish()

    assert len(sent.chunks) < 600
    for stream, letter in (("stdout", "a"), ("stderr", "b")):
        assert "".join(text for name, text in sent.chunks if name == stream) == letter * 5000


def test_a_very_short_sleep_sends_nothing(sent: Sent) -> None:
    """Or a loop of sleeps would make a frame of every byte."""
    execution = Execution(1, Limits(), sent)
    write(execution.output, 1, b"x")
    execution.sleep(0.0)

    assert sent.chunks == []


@pytest.mark.parametrize(
    ("lines_max", "pieces", "kept"),
    [
        (2, [b"a\nb\n"], "a\nb\n"),
        (2, [b"a\nb\nc"], "a\nb\n"),
        (2, [b"a", b"\nb", b"\n", b"c"], "a\nb\n"),
        (2, [b"a\nb"], "a\nb"),
        (0, [b"a"], ""),
    ],
)
def test_output_is_cut_after_its_last_line(
    sent: Sent, lines_max: int, pieces: list[bytes], kept: str
) -> None:
    output = OutputBuffer(100, lines_max, sent)
    for piece in pieces:
        write(output, 1, piece)
    output.finish()

    assert "".join(text for _, text in sent.chunks) == kept
    assert output.written_bytes == len(b"".join(pieces))
    assert output.written_bytes - output.dropped_bytes == len(kept)


def test_nothing_is_kept_after_a_gap(sent: Sent) -> None:
    """A text with a hole in it would read as if it were whole."""
    output = OutputBuffer(10, LINES, sent)
    write(output, 1, b"x" * 8)
    write(output, 1, b"y" * 8)
    write(output, 1, b"z")
    output.finish()

    assert sent.chunks == [("stdout", "x" * 8 + "yy")]
    assert output.dropped_bytes == 7


def test_a_sleep_on_fixed_clocks_takes_no_time(sent: Sent) -> None:
    surroundings = FixedSurroundings(Determinism(clock_ns=0, seed=0), 1, lambda: 0)
    execution = Execution(1, Limits(), sent, surroundings)
    started = time.monotonic()
    execution.sleep(1e6)

    assert time.monotonic() - started < 10
    assert surroundings.clock_ns(0) == 10**15
