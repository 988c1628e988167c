"""A worker that says anything at any moment: heeded or ended, and only its sessions notice."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox_service import frames
from sandbox_service.errors import SessionLostError
from sandbox_service.execution_stream import Ended
from tests.hostile import fuzz_frames
from tests.hostile.puppet_supervisor import HASTY, OPTIONS, run, supervisor
from tests.hostile.puppet_worker import Script, ended, output
from tests.support.eventually import eventually

EXAMPLES = 120
ALL_WELL_S = 60.0
"""For everything of one example, with a supervisor that has hardly any patience."""
SMALL = st.sampled_from([0, 1, 1, 1, 1, 2, 3, (1 << 63) - 1])
TEXTS = st.sampled_from(["x", "\0", "\u20ac" * 300, "x" * 900, "y" * 5000])
QUESTIONS = st.builds(
    frames.Question,
    prompts=st.lists(st.just([frames.Message("user", "x")]), min_size=1, max_size=8),
    is_batch=st.booleans(),
    tier=st.just("sub"),
    output_tokens_max=st.none(),
    temperature=st.none(),
)
FRAMES = st.one_of(
    st.builds(frames.Started),
    st.builds(frames.Opened, session=SMALL, memory_bytes=SMALL),
    st.builds(
        frames.OpenFailed,
        session=SMALL,
        problem=st.sampled_from(["too_large", "unreadable"]),
        variable=st.just("x"),
        message=st.just("x"),
    ),
    st.builds(output, SMALL, SMALL, TEXTS),
    st.builds(ended, SMALL, SMALL),
    st.builds(
        lambda frame, ending, kept: msgspec.structs.replace(frame, ending=ending, state_kept=kept),
        st.builds(ended, SMALL, SMALL),
        st.sampled_from(["raised", "interrupted", "trapped", "worker_lost", "refused"]),
        st.booleans(),
    ),
    st.builds(frames.Saved, session=SMALL, execution=SMALL),
    st.builds(frames.SubCalls, session=SMALL, execution=SMALL, call=SMALL, question=QUESTIONS),
    st.builds(frames.Lost, session=SMALL, cause=st.just("x")),
    st.builds(frames.Closed, session=SMALL),
)
WELL_MEANT = st.one_of(
    st.just(output()),
    st.just(ended()),
    st.just(frames.Saved(session=1, execution=1)),
    st.builds(
        frames.SubCalls,
        session=st.just(1),
        execution=st.just(1),
        call=st.just(1),
        question=QUESTIONS,
    ),
)


def to_msgpack(value: Any) -> bytes:
    return framed(msgspec.msgpack.encode(value))


def framed(payload: bytes, announced: int | None = None) -> bytes:
    length = len(payload) if announced is None else announced
    return length.to_bytes(4, "little") + payload


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A frame of which a field has another type, a byte another value, or the end is missing."""
    whole = frames.encode(draw(FRAMES))
    kind = draw(st.sampled_from(["field", "byte", "end", "length"]))
    if kind == "field":
        fields = msgspec.msgpack.decode(whole[4:])
        value: Any = draw(
            st.sampled_from([None, -1, 1 << 63, 1.5, "x", b"x", [], {}, [[]] * 50, "x" * 5000])
        )
        fields[draw(st.sampled_from(sorted(fields)))] = value
        return to_msgpack(fields)
    if kind == "length":
        return framed(whole[4:], draw(st.integers(0, (1 << 32) - 1)))
    data = bytearray(whole)
    if kind == "byte":
        data[draw(st.integers(4, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data)
    return bytes(data[: draw(st.integers(0, len(data) - 1))])


NOISE = st.one_of(
    st.binary(max_size=64),
    st.just(b"\x00\x00\x00\x00"),
    st.just(framed(b"\x91" * 100_000)),  # nested far deeper than any frame
    st.just(framed(b"\xdf\xff\xff\xff\xff")),  # a map that says it has four thousand million keys
    st.just(framed(b"", frames.FRAME_BYTES_MAX + 1)),
)
SAYINGS = st.one_of(WELL_MEANT.map(frames.encode), FRAMES.map(frames.encode), spoilt(), NOISE)


async def attack(script: list[bytes], folder: Path) -> None:
    async with (
        supervisor(Script(says=tuple(script)), folder, is_hasty=True) as sessions,
        asyncio.timeout(ALL_WELL_S),
    ):
        attacked = await sessions.create(HASTY)
        neighbour = await sessions.create(OPTIONS)

        events = await run(sessions, attacked)
        assert events is None or isinstance(events[-1], Ended)

        await run(sessions, attacked)  # wherever it is then
        beside = await run(sessions, neighbour)
        assert beside is not None
        assert beside[1:] == [output(), Ended(frame=ended(), limit_reached=None)]
        await eventually(lambda: len(sessions.pool.workers) == 2)
        with contextlib.suppress(SessionLostError):
            await sessions.delete(attacked.name)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(SAYINGS, min_size=1, max_size=8), st.booleans())
@example(
    [
        frames.encode(
            frames.SubCalls(
                session=1,
                execution=1,
                call=1,
                question=frames.Question(
                    prompts=[[frames.Message("user", "x")]] * 8,
                    is_batch=True,
                    tier="",
                    output_tokens_max=None,
                    temperature=None,
                ),
            )
        ),
        frames.encode(ended()),
    ],
    True,
)
@example([frames.encode(ended())] * 2, False)
@example([frames.encode(ended()), frames.encode(output())], False)
def test_whatever_a_worker_says_harms_its_own_sessions_at_most(
    sayings: list[bytes], is_one_piece: bool
) -> None:
    """Each execution ends as the contract has it, and the other worker's sessions go on."""
    script = [b"".join(sayings)] if is_one_piece else sayings
    with TemporaryDirectory() as folder:
        asyncio.run(attack(script, Path(folder)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(SAYINGS, max_size=6).map(b"".join), st.lists(st.integers(1, 50), min_size=1))
def test_a_stream_means_the_same_in_whatever_pieces_it_comes(data: bytes, sizes: list[int]) -> None:
    """And nothing but a frame or a FrameError ever comes out of the reader."""

    def heard(pieces: list[bytes]) -> list[object]:
        reader, found = frames.FrameReader(frames.FromWorker), list[object]()
        try:
            for piece in pieces:
                found += reader.feed(piece)
        except frames.FrameError as error:
            found.append(str(error))
        return found

    pieces, position, number = [], 0, 0
    while position < len(data):
        size = sizes[number % len(sizes)]
        pieces.append(data[position : position + size])
        position, number = position + size, number + 1

    assert heard(pieces) == heard([data])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.sampled_from([0, 1, 2, 3]), SAYINGS | st.binary(max_size=200))
def test_what_the_endless_fuzzer_tries_does_no_harm(choice: int, data: bytes) -> None:
    """It runs where atheris is installed; what it calls must work everywhere."""
    fuzz_frames.attempt(bytes([choice]) + data)


@pytest.mark.parametrize("seed", fuzz_frames.SEEDS)
def test_what_the_endless_fuzzer_begins_with_does_no_harm(seed: bytes) -> None:
    fuzz_frames.attempt(seed)
