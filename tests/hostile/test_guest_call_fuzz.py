"""The host's door with requests and addresses from noise: an answer or a refusal, nothing else."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.blob_index import text_index
from sandbox_service import frames
from sandbox_service.limits import Limits
from sandbox_service.worker.contexts import Contexts
from sandbox_service.worker.execution import Execution
from sandbox_service.worker.guest_door import GuestDoor
from tests.hostile.mapped_memory import MappedMemory

MEMORY_BYTES = 1 << 20
REQUEST_AT, RESULT_AT, ANSWER_AT = 4096, 64, 512 << 10
DONE, REFUSED = 0, -1
LIMITS = Limits(memory_bytes_max=64 << 20, value_bytes_max=64 << 10)
TEXT = ("h\u00e9llo world \U0001f600\n" * 500).encode()
CELL = frames.Run(session=1, execution=1, code="x", report_variables=True)
FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)


def mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One in eight is bad: with more of them no request would be understood."""
    return st.integers(0, 7).flatmap(lambda number: bad if number == 7 else good)


HUGE = st.sampled_from([-1, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 200])
NUMBERS = mostly(st.integers(0, 12_000), HUGE)
ZERO = mostly(st.just(0), NUMBERS)
PATTERNS = st.sampled_from(
    ["h", "\u00e9", "o w", "\\w+", "(a+)+$", "(", "a**", "\\p{L}+", "\ud800"]
)
WORDS = mostly(st.text(min_size=1, max_size=20), st.sampled_from(["", "\ud800", "\0", "x" * 300]))
FLOATS = mostly(st.floats(0, 2), st.floats())
LEAVES = st.one_of(st.none(), st.booleans(), HUGE, st.floats(), WORDS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "text": WORDS})
LAZY = {"mount": ZERO, "text": ZERO}
RANGE = {"start": NUMBERS, "stop": NUMBERS}
FAILURE = {"type": WORDS, "message": WORDS, "traceback": WORDS}
VARIABLE = {"name": WORDS, "type": WORDS, "length": st.none() | NUMBERS, "preview": WORDS}
FINDING = {"pattern": mostly(st.just("ctypes"), WORDS), "line": NUMBERS, "detail": WORDS}
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "cell": {},
    "mounts": {},
    "texts": {"mount": NUMBERS, "start": NUMBERS},
    "fill": {"mount": NUMBERS, "text": NUMBERS, "address": NUMBERS},
    "read": LAZY | RANGE,
    "span": LAZY | RANGE,
    "find": LAZY
    | RANGE
    | {"needle": PATTERNS | WORDS, "what": st.sampled_from(["first", "last", "count", "all"])},
    "grep": LAZY
    | RANGE
    | {
        "pattern": PATTERNS,
        "ignore_case": st.booleans(),
        "limit": mostly(st.integers(1, 100), NUMBERS),
        "time_s": FLOATS,
    },
    "findings": {"findings": st.lists(st.fixed_dictionaries(FINDING), min_size=1, max_size=3)},
    "sub_calls": {
        "prompts": st.lists(st.lists(MESSAGE, min_size=1, max_size=2), min_size=1, max_size=3),
        "is_batch": st.booleans(),
        "tier": WORDS,
        "output_tokens_max": st.none() | NUMBERS,
        "temperature": st.none() | FLOATS,
    },
    "ended": {
        "ending": st.sampled_from(["completed", "raised", "timed_out"]),
        "error": st.none() | st.fixed_dictionaries(FAILURE),
        "final": st.none()
        | st.fixed_dictionaries({"text": WORDS, "is_json": st.booleans(), "variable": WORDS}),
        "variables": st.lists(st.fixed_dictionaries(VARIABLE), max_size=3),
    },
}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request as the runtime might make it, then spoilt in a place or two."""
    call = draw(st.sampled_from(sorted(FIELDS)))
    request: dict[str, Any] = {"call": call, **draw(st.fixed_dictionaries(FIELDS[call]))}
    if draw(mostly(st.just(False), st.just(True))):
        request[draw(st.sampled_from(sorted(request)))] = draw(VALUES)
    data = bytearray(json.dumps(request).encode())
    for _ in range(draw(mostly(st.just(0), st.integers(1, 4)))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(mostly(st.none(), st.integers(0, len(data))))])


class Guest:
    """Takes the place of an instance: its memory is real, its allocator as hostile as asked."""

    def __init__(self, address: int) -> None:
        self.memory = MappedMemory(MEMORY_BYTES)
        self._address = address

    def allocate(self, size_bytes: int) -> int:
        return self._address


@contextmanager
def door(address: int = ANSWER_AT, *, is_started: bool = True) -> Iterator[tuple[GuestDoor, Guest]]:
    """Yield the door of a session with one lazy context; its sub-models answer at once."""
    blob, index = os.memfd_create("blob"), os.memfd_create("index")
    os.write(blob, TEXT)
    text_index.build(blob, len(TEXT), index)
    text = frames.Text(
        name="",
        offset_bytes=0,
        size_bytes=len(TEXT),
        characters=len(TEXT.decode()),
        code_point_max=0x1F600,
        is_lazy=True,
    )
    mount = frames.Mount(variable="context", kind="text", texts=[text], has_index=True)
    contexts = Contexts([mount], [blob, index], LIMITS.memory_bytes_max)

    def send(frame: frames.FromWorker) -> None:
        assert isinstance(frame, frames.SubCalls)
        frames.encode(frame)
        answers: list[frames.Answer | frames.ChildAnswer | frames.Refusal] = [
            frames.Answer("a") for _ in frame.question.prompts
        ]
        opened.answer(frames.SubCallAnswers(session=1, call=frame.call, outcomes=answers))

    opened = GuestDoor(1, LIMITS, contexts, None, send)  # type: ignore[arg-type]  # fills nothing
    guest = Guest(address)
    opened.instance = guest  # type: ignore[assignment]
    opened.begin(Execution(1, LIMITS, lambda *_: None), CELL if is_started else None)
    try:
        yield opened, guest
    finally:
        contexts.close()


def ask(request: bytes) -> int:
    """Make one request of a session that runs a cell; returns the door's answer."""
    with door() as (opened, guest):
        guest.memory.put(REQUEST_AT, request)
        result = opened.call(REQUEST_AT, len(request), RESULT_AT, RESULT_AT + 4)
        assert guest.memory.is_intact_around
        if opened.report is not None:  # what the worker makes of it must fit a frame
            for part in (opened.report.error, opened.report.final, *opened.report.variables):
                frames.encode(part)  # type: ignore[arg-type]  # a part of one
        return result


@FUZZ
@given(requests() | st.binary(max_size=300))
@example(
    b'{"call":"ended","ending":"completed","error":null,"variables":[],"final":{"text":"\\ud800","is_json":false,"variable":""}}'
)
@example(b'{"call":"find","mount":0,"text":0,"needle":"\\udc80","start":0,"stop":9,"what":"first"}')
@example(
    b'{"call":"grep","mount":0,"text":0,"pattern":"\\ud83d","ignore_case":false,"start":0,"stop":99,"limit":5,"time_s":1}'
)
@example(
    b'{"call":"sub_calls","prompts":[[{"role":"user","text":"\\ud800"}]],"is_batch":false,"tier":"","output_tokens_max":null,"temperature":null}'
)
def test_any_request_is_answered_or_refused(request: bytes) -> None:
    """What else came out of the door would end the session as a fault of the host's."""
    assert ask(request) in (DONE, REFUSED)


@FUZZ
@given(
    st.lists(st.integers(0, (1 << 32) - 1) | st.integers(0, 5000), min_size=4, max_size=4),
    st.integers(0, (1 << 32) - 1) | st.sampled_from([0, MEMORY_BYTES - 1, MEMORY_BYTES]),
)
def test_no_address_leads_out_of_the_guests_memory(numbers: list[int], address: int) -> None:
    """Neither those of the request and of its answer, nor the one that the allocator gives."""
    with door(address) as (opened, guest):
        guest.memory.put(REQUEST_AT, b'{"call":"cell"}')
        start, size, result_start, result_size = numbers

        result = opened.call(start, size, result_start, result_size)
        known = opened.call(REQUEST_AT, 15, result_start, result_size)

        assert {result, known} <= {DONE, REFUSED}
        assert guest.memory.is_intact_around


@pytest.mark.parametrize("call", ["mounts", "texts", "fill"])
def test_what_only_the_start_may_ask_is_refused_to_a_cell(call: str) -> None:
    request = {"call": call, "mount": 0, "start": 0, "text": 0, "address": 65536}

    assert ask(json.dumps(request).encode()) == REFUSED


@pytest.mark.parametrize("call", ["cell", "sub_calls", "findings"])
def test_what_only_a_cell_may_ask_is_refused_to_the_start(call: str) -> None:
    """No code of the user's runs yet, and no answer to it could be told from the context's."""
    request = (
        b'{"call":"%s","mount":0,"text":0,"start":0,"stop":9,"pattern":"x","ignore_case":false,'
        b'"limit":1,"time_s":1,"findings":[{"pattern":"ctypes","line":1,"detail":""}],'
        b'"prompts":[[{"role":"user","text":"x"}]],"is_batch":false,"tier":"",'
        b'"output_tokens_max":null,"temperature":null}' % call.encode()
    )
    assert ask(request) == DONE
    with door(is_started=False) as (opened, guest):
        guest.memory.put(REQUEST_AT, request)

        assert opened.call(REQUEST_AT, len(request), RESULT_AT, RESULT_AT + 4) == REFUSED


@pytest.mark.parametrize(("extra", "result"), [(0, DONE), (1, REFUSED)])
def test_a_request_has_the_size_of_a_value_at_most(extra: int, result: int) -> None:
    request = b'{"call":"cell"'.ljust(LIMITS.value_bytes_max + extra - 1) + b"}"

    assert ask(request) == result


def test_the_answer_is_where_the_guest_is_told(request: pytest.FixtureRequest) -> None:
    with door() as (opened, guest):
        guest.memory.put(REQUEST_AT, b'{"call":"cell"}')

        assert opened.call(REQUEST_AT, 15, RESULT_AT, RESULT_AT + 4) == DONE

        address, size = struct.unpack("<II", guest.memory.read(RESULT_AT, 8))
        assert json.loads(guest.memory.read(address, size))["source"] == "x"
