"""Limits of a session: read, reported, and felt by the code, on either side of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from sandbox_service.guest_build import GuestBuild
from tests.support.sandbox import Ran, Sandbox, details, guest, sandbox

pytestmark = pytest.mark.guest
VALUE_BYTES = 64 << 10
SPIN = "while True:\n    pass"
BUSY_MAX = 20
LIMITS = {
    "memory_bytes_max": (64 << 20, 4 << 30),
    "fuel_max": (1, 10**14),
    "output_bytes_max": (0, 16 << 20),
    "sub_calls_max": (0, 10**6),
    "output_lines_max": (0, 10**6),
    "session_fuel_max": (1, 10**16),
    "value_bytes_max": (VALUE_BYTES, 48 << 20),
    "open_files_max": (1, 256),
}
"""The least and the most that a session may ask for."""
TIMES = {"execute_time_max": 3_600, "session_time_max": 360_000}


@pytest.fixture(scope="module")
def build() -> GuestBuild:
    return guest()


@pytest.fixture
async def box(build: GuestBuild, tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(build, tmp_path) as box:
        yield box


def limits(**fields: Any) -> session_pb2.SessionLimits:
    return session_pb2.SessionLimits(**fields)


async def refusal(box: Sandbox, **fields: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(limits=limits(**fields))
    return details(caught.value)


# What may be asked for


async def test_the_host_tells_every_default_and_ceiling(box: Sandbox) -> None:
    info = await box.stub.GetSandboxInfo(wire.GetSandboxInfoRequest(), timeout=30)

    for name, (_, most) in LIMITS.items():
        assert 0 < getattr(info.default_limits, name) <= getattr(info.ceiling_limits, name) == most
    for name, most in TIMES.items():
        assert 0 < getattr(info.default_limits, name).seconds <= most
        assert getattr(info.ceiling_limits, name).seconds == most


async def test_a_session_gets_the_defaults_and_tells_them(box: Sandbox) -> None:
    info = await box.stub.GetSandboxInfo(wire.GetSandboxInfoRequest(), timeout=30)

    assert (await box.session(await box.create())).limits == info.default_limits


async def test_the_least_and_the_most_of_each_limit_are_taken(box: Sandbox) -> None:
    for which in (0, 1):
        asked = limits(**{name: bounds[which] for name, bounds in LIMITS.items()})
        for name, most in TIMES.items():
            getattr(asked, name).CopyFrom(Duration(seconds=most) if which else Duration(nanos=1000))

        assert (await box.session(await box.create(limits=asked))).limits == asked


@pytest.mark.parametrize("name", LIMITS)
async def test_one_less_than_the_least_is_refused(box: Sandbox, name: str) -> None:
    code, reason, metadata = await refusal(box, **{name: LIMITS[name][0] - 1})

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata == {"field": f"limits.{name}"}


@pytest.mark.parametrize("name", LIMITS)
async def test_one_more_than_the_most_is_refused(box: Sandbox, name: str) -> None:
    """Never silently lowered."""
    most = LIMITS[name][1]

    code, reason, metadata = await refusal(box, **{name: most + 1})

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_ABOVE_CEILING")
    assert metadata == {"field": f"limits.{name}", "value": str(most + 1), "ceiling": str(most)}


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize(
    ("extra_s", "reason"), [(1, "LIMIT_ABOVE_CEILING"), (-(10**6), "INVALID_FIELD")]
)
async def test_a_time_out_of_its_range_is_refused(
    box: Sandbox, name: str, extra_s: int, reason: str
) -> None:
    found = await refusal(box, **{name: Duration(seconds=TIMES[name] + extra_s)})

    assert found[:2] == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert found[2]["field"] == f"limits.{name}"


# Fuel and time


async def test_an_execution_that_uses_up_its_fuel_names_the_limit(box: Sandbox) -> None:
    session = await box.create(limits=limits(fuel_max=50_000_000))

    ran = await box.run(session, SPIN)

    assert (ran.ending, ran.result.limit) == ("out_of_fuel", "fuel_max")
    assert "50000000 instructions" in ran.result.error.message


async def test_a_session_that_uses_up_its_fuel_runs_nothing_more(box: Sandbox) -> None:
    """Each cell is within its own limit, and together they are not."""
    session = await box.create(limits=limits(fuel_max=10**10, session_fuel_max=100_000_000))
    first = await box.run(session, "x = sum(range(100_000))")
    second = await box.run(session, SPIN)
    third = await box.run(session, "x = 1")

    assert first.ending == "completed"
    for ran in (second, third):
        assert (ran.ending, ran.result.limit) == ("out_of_fuel", "session_fuel_max")
        assert "session has used up its 100000000 instructions" in ran.result.error.message
        assert not ran.result.state_kept
    assert first.result.fuel_used + second.result.fuel_used == 100_000_000
    assert third.result.fuel_used == 0


async def test_a_session_within_its_fuel_goes_on(box: Sandbox) -> None:
    session = await box.create(limits=limits(session_fuel_max=100_000_000))

    endings = [(await box.run(session, f"x = {i}")).ending for i in range(20)]

    assert endings == ["completed"] * 20


async def test_an_execution_that_uses_up_its_time_names_the_limit(box: Sandbox) -> None:
    session = await box.create(limits=limits(execute_time_max=Duration(nanos=50_000_000)))

    ran = await box.run(session, SPIN)

    assert (ran.ending, ran.result.limit) == ("timed_out", "execute_time_max")


async def test_a_session_that_uses_up_its_time_runs_nothing_more(box: Sandbox) -> None:
    session, first = await begun_in_time(box, limits(session_time_max=Duration(seconds=1)))
    second = await box.run(session, SPIN)
    third = await box.run(session, "x = 2")

    assert first.ending == "completed"
    for ran in (second, third):
        assert (ran.ending, ran.result.limit) == ("timed_out", "session_time_max")
        assert "session has used up its 1 s" in ran.result.error.message
    assert third.result.fuel_used < second.result.fuel_used / 2


async def begun_in_time(box: Sandbox, given: session_pb2.SessionLimits) -> tuple[str, Ran]:
    """Make a session and run its first cell: again, where a busy machine took all of its time."""
    for _ in range(BUSY_MAX):
        session = await box.create(limits=given)
        ran = await box.run(session, "x = 1")
        if ran.ending != "timed_out":
            break
    return session, ran


async def test_a_wait_for_a_sub_model_is_not_the_sessions_time(box: Sandbox) -> None:
    session = await box.create(limits=limits(session_time_max=Duration(seconds=30)))

    ran = await box.run(session, "[llm_query('hi') for _ in range(20)][0]")
    after = await box.run(session, "1")

    assert ran.result.wait_time.ToMicroseconds() > 0
    assert (ran.result.limit, after.ending) == ("", "completed")


# Output


@pytest.mark.parametrize(("lines", "dropped"), [(10, 0), (11, 3)])
async def test_output_is_cut_after_its_last_line(box: Sandbox, lines: int, dropped: int) -> None:
    session = await box.create(limits=limits(output_lines_max=10))

    ran = await box.run(session, f"for i in range({lines}): print(f'{{i:02}}')")

    assert ran.out == "".join(f"{i:02}\n" for i in range(10))
    assert (ran.ending, ran.result.output_bytes_dropped) == ("completed", dropped)
    assert ran.result.output_bytes == 3 * lines


async def test_lines_count_over_both_streams(box: Sandbox) -> None:
    session = await box.create(limits=limits(output_lines_max=3))

    ran = await box.run(
        session, "import sys\nfor i in range(4):\n    print(i)\n    print(i, file=sys.stderr)"
    )

    assert (ran.out, ran.err) == ("0\n1\n", "0\n")


async def test_a_session_without_lines_has_no_output(box: Sandbox) -> None:
    session = await box.create(limits=limits(output_lines_max=0))

    ran = await box.run(session, "print('x' * 10)")

    assert (ran.out, ran.ending, ran.result.output_bytes_dropped) == ("", "completed", 11)


# Values that leave the guest


def prompt_of(size_bytes: int) -> str:
    """Return a cell that asks with a request of exactly this size."""
    return (
        "from fathom_guest import sub_calls, host\n"
        "def size(text):\n"
        "    asked = sub_calls._request([sub_calls._messages(text)], False, None, None, None)\n"
        "    return len(host._ENCODER.encode(asked).encode())\n"
        f"len(llm_query('x' * ({size_bytes} - size('x') + 1)))"
    )


@pytest.mark.parametrize(("extra", "ending"), [(0, "completed"), (1, "raised")])
async def test_a_prompt_that_is_too_large_is_not_sent(
    box: Sandbox, extra: int, ending: str
) -> None:
    session = await box.create(limits=limits(value_bytes_max=VALUE_BYTES))

    ran = await box.run(session, prompt_of(VALUE_BYTES + extra))

    assert ran.ending == ending
    assert len(box.gateway.requests) == 1 - extra
    if extra:
        assert ran.result.error.type == "ValueError"
        assert "65,537 bytes in one call; at most 65,536" in ran.result.error.message


@pytest.mark.parametrize(
    ("size", "ending"), [(VALUE_BYTES, "completed"), (VALUE_BYTES + 1, "raised")]
)
async def test_an_answer_that_is_too_large_is_not_given(
    box: Sandbox, size: int, ending: str
) -> None:
    session = await box.create(limits=limits(value_bytes_max=VALUE_BYTES))

    ran = await box.run(session, f"FINAL('x' * {size})")

    assert ran.ending == ending
    assert len(ran.result.final.text) == (size if ending == "completed" else 0)


@pytest.mark.parametrize(
    "request_of_size",
    [
        """b'{"call":"sub_calls","prompts":[[{"role":"user","text":"' + b'x' * 70_000
        + b'"}]],"is_batch":false,"tier":"","output_tokens_max":null,"temperature":null}'""",
        """b'{"call":"ended","ending":"completed","error":null,"final":{"text":"' + b'x' * 70_000
        + b'","is_json":false,"variable":""},"variables":[]}'""",
        "b'[' * (1 << 20)",
        "b'x' * (40 << 20)",
    ],
    ids=["prompt", "answer", "nested", "enormous"],
)
async def test_what_goes_around_the_runtime_is_refused(box: Sandbox, request_of_size: str) -> None:
    """The door has the same limit as the runtime in front of it."""
    session = await box.create(limits=limits(value_bytes_max=VALUE_BYTES))

    ran = await box.run(session, f"import _host\n_host.call({request_of_size})")
    after = await box.run(session, "1 + 1")

    assert ran.ending == "raised"
    assert not box.gateway.requests
    assert not ran.result.final.text
    assert after.out == "2\n"


# Open files


@pytest.mark.parametrize(("files", "ending"), [(5, "completed"), (6, "raised")])
async def test_open_files_are_limited(box: Sandbox, files: int, ending: str) -> None:
    session = await box.create(limits=limits(open_files_max=5))

    ran = await box.run(
        session, f"held = [open('/usr/local/lib/python315.zip', 'rb') for _ in range({files})]"
    )

    assert ran.ending == ending
    if ending == "raised":
        assert ran.result.error.type == "OSError"


async def test_one_open_file_is_enough_for_imports(box: Sandbox) -> None:
    session = await box.create(limits=limits(open_files_max=1))

    assert (await box.run(session, "import xml.dom.minidom, numpy")).ending == "completed"


# Memory


async def test_memory_that_cannot_be_had_names_the_limit(box: Sandbox) -> None:
    session = await box.create(limits=limits(memory_bytes_max=64 << 20))

    ran = await box.run(session, "held = []\nwhile True:\n    held.append(bytearray(1 << 16))")

    assert ran.ending in ("raised", "out_of_memory")
    assert ran.result.limit == ("memory_bytes_max" if ran.ending == "out_of_memory" else "")
    assert ran.result.error.type == "MemoryError"
