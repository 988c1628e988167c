"""Frames: what comes from a worker is hostile."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from sandbox_service import frames
from sandbox_service.frames import FrameError, FrameReader


def test_a_frame_survives_being_cut_anywhere() -> None:
    """A stream has no message borders."""
    sent: list[frames.FromWorker] = [
        frames.Closed(session=7),
        frames.Lost(session=8, cause="é" * 100),
    ]
    data = b"".join(frames.encode(frame) for frame in sent)
    reader = FrameReader(frames.FromWorker)

    received = [frame for byte in data for frame in reader.feed(bytes([byte]))]

    assert received == sent


def test_a_length_above_the_cap_is_refused_before_anything_is_kept() -> None:
    """A worker must not make the supervisor allocate what it announces."""
    reader = FrameReader(frames.FromWorker)

    with pytest.raises(FrameError, match="bytes"):
        list(reader.feed(struct.pack("<I", frames.FRAME_BYTES_MAX + 1)))


def test_a_length_at_the_cap_is_waited_for() -> None:
    reader = FrameReader(frames.FromWorker)

    assert not list(reader.feed(struct.pack("<I", frames.FRAME_BYTES_MAX)))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "no such frame", "session": 1}),
        msgspec.msgpack.encode({"type": "opened", "session": "1", "memory_bytes": 1}),
        msgspec.msgpack.encode({"type": "opened", "session": 1, "memory_bytes": -1}),
        msgspec.msgpack.encode({"type": "opened", "session": 1}),
        msgspec.msgpack.encode(
            {"type": "output", "session": 1, "execution": 1, "stream": "stdin", "text": ""}
        ),
        b"\x91" * 100_000,
    ],
)
def test_a_frame_of_the_wrong_form_is_an_error(payload: bytes) -> None:
    """No frame is half understood."""
    reader = FrameReader(frames.FromWorker)

    with pytest.raises(FrameError, match="decode"):
        list(reader.feed(struct.pack("<I", len(payload)) + payload))


@pytest.mark.parametrize("extra", [0, 1])
def test_output_of_one_frame_has_a_limit(extra: int) -> None:
    """The cap of a text is part of its type."""
    text = "x" * (frames.OUTPUT_TEXT_MAX + extra)
    data = frames.encode(frames.Output(session=1, execution=1, stream="stdout", text=text))
    reader = FrameReader(frames.FromWorker)

    if extra:
        with pytest.raises(FrameError, match="decode"):
            list(reader.feed(data))
    else:
        assert len(list(reader.feed(data))) == 1


def test_a_frame_of_the_other_direction_is_refused() -> None:
    """A worker cannot pose as the supervisor."""
    data = frames.encode(frames.Close(session=1))

    with pytest.raises(FrameError, match="decode"):
        list(FrameReader(frames.FromWorker).feed(data))


def test_what_a_frame_says_wrong_is_quoted_in_part_only() -> None:
    """It is written to the log, and told to the clients of every session of that worker."""
    payload = msgspec.msgpack.encode({"type": "x" * 1_000_000})

    with pytest.raises(FrameError) as caught:
        list(FrameReader(frames.FromWorker).feed(struct.pack("<I", len(payload)) + payload))

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("prompts", "messages"),
    [(1, frames.BATCH_MESSAGES_MAX), (frames.BATCH_MESSAGES_MAX // 100, 100)],
)
def test_the_messages_of_all_prompts_together_have_a_limit(prompts: int, messages: int) -> None:
    """Millions of them fit a frame, and take the supervisor seconds."""
    message = {"role": "user", "text": "a"}
    question: dict[str, Any] = {
        "is_batch": True,
        "tier": "",
        "output_tokens_max": None,
        "temperature": None,
    }
    question["prompts"] = [[message] * messages] * prompts
    call = {"type": "sub_calls", "session": 1, "execution": 1, "call": 1, "question": question}

    for extra in (0, 1):
        question["prompts"][0] = [message] * (messages + extra)
        payload = msgspec.msgpack.encode(call)
        feed = FrameReader(frames.FromWorker).feed(struct.pack("<I", len(payload)) + payload)
        if extra:
            with pytest.raises(FrameError, match="messages"):
                list(feed)
        else:
            assert isinstance(next(feed), frames.SubCalls)
