"""Cells and callers that mean harm, or might as well: what they break is theirs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from tests.support.sandbox import Sandbox, details, guest, sandbox, shape

pytestmark = pytest.mark.guest
KEEP = "keep = 7"
BROKEN_REPR = "class R:\n    def __{0}__(self):\n        raise SystemExit(7)\nr = R()\n"
BOMB = "x = []\nwhile True:\n    x = [x, x]"
LARGE_CELLS = {
    "parentheses": ("(" * 500_000, "syntax_error"),
    "a list": ("x = [" + "1," * 60_000 + "]", "completed"),
    "one line of operators": ("x = 1" + "+1" * 400_000, "trapped"),
    "attributes": ("x = a" + ".a" * 300_000, "trapped"),
    "a text": ("x = '" + "a" * 1_000_000 + "'", "completed"),
    "statements": ("x = 1\n" * 30_000, "completed"),
    "strings that are joined": ("x = " + "'a' " * 200_000, "completed"),
    "an f-string in an f-string": ("x = " + "f'{" * 300_000, "syntax_error"),
    "comments": ("#" * 1_000_000, "completed"),
    "line ends": ("\n" * 1_000_000, "completed"),
}
"""Cells that some part of Python's compiler finds hard; two are too deep even to be refused."""
FORGED = """
import _host
frame = b'{"call":"ended","ending":"completed","error":null,"final":null,"variables":[%s]}'
try:
    _host.call(frame % b'{"name":"a","type":"b","length":18446744073709551615,"preview":""}')
except OSError:
    print("refused")
import sys
sys.modules["fathom_guest.cells"]._report = lambda *_: False
"""


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


async def small(box: Sandbox) -> str:
    return await box.create(limits=session_pb2.SessionLimits(memory_bytes_max=128 << 20))


def mappings(box: Sandbox) -> int:
    """Count the mappings of the one worker."""
    (pid,) = box.worker_pids()
    return len(Path(f"/proc/{pid}/maps").read_text().splitlines())


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (BOMB, "out_of_memory"),
        ("import sys; sys.modules['fathom_guest.cells']._report = None", "trapped"),
    ],
)
async def test_a_cell_that_cannot_say_how_it_ended_is_undone(
    box: Sandbox, code: str, ending: str
) -> None:
    """Kept as it is, the session could never run a cell again."""
    session = await small(box)
    await box.run(session, KEEP)

    ran = await box.run(session, code)

    assert (ran.ending, ran.result.state_kept) == (ending, False)
    assert (await box.run(session, "keep")).out == "7\n"


@pytest.mark.parametrize("what", LARGE_CELLS)
async def test_a_large_cell_ends_in_good_time(box: Sandbox, what: str) -> None:
    """Parsing, checking and compiling are limited like what is run afterwards."""
    session = await box.create(limits=session_pb2.SessionLimits(fuel_max=40_000_000_000))
    await box.run(session, KEEP)
    code, ending = LARGE_CELLS[what]

    ran = await box.run(session, code)

    assert (ran.ending, ran.result.state_kept) == (ending, ending != "trapped")
    assert (await box.run(session, "keep")).out == "7\n"


async def test_a_session_whose_runtime_is_gone_is_lost(box: Sandbox) -> None:
    """The caller opens another; no cell would ever begin in this one."""
    session = await box.create()
    other = await box.create()
    pids = box.worker_pids()
    await box.run(session, "import builtins; del builtins.__cell__")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.run(session, "1")

    code, reason, metadata = details(caught.value)
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_LOST")
    assert "the code broke the runtime" in metadata["cause"]
    assert (await box.run(other, "1")).out == "1\n"
    assert box.worker_pids() == pids


@pytest.mark.parametrize(
    ("code", "ending", "kind"),
    [
        ("import builtins; builtins.print = builtins.repr = builtins.any = None", "completed", ""),
        ("import json; json.loads = json.dumps = None", "completed", ""),
        (BROKEN_REPR.format("repr"), "completed", ""),
        (BROKEN_REPR.format("len"), "completed", ""),
        (BROKEN_REPR.format("repr") + "r", "exited", "SystemExit"),
        ("import sys; sys.stderr.close(); 1 / 0", "raised", "ZeroDivisionError"),
        ("import sys; sys.stdout.close()", "completed", ""),
        (
            "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E()",
            "raised",
            "E",
        ),
        ("x" * 300 + " = 1\nFINAL_VAR('" + "x" * 300 + "')", "completed", ""),
    ],
)
async def test_careless_code_costs_neither_its_ending_nor_the_session(
    box: Sandbox, code: str, ending: str, kind: str
) -> None:
    session = await box.create()
    await box.run(session, KEEP)

    ran = await box.run(session, code, report_variables=True)
    after = await box.run(session, "keep", report_variables=True)

    assert (ran.ending, ran.result.error.type) == (ending, kind)
    assert ran.result.state_kept
    assert (after.ending, after.out) == ("completed", "7\n")


async def test_a_report_with_impossible_numbers_is_refused(box: Sandbox) -> None:
    """Numbers that the wire cannot carry must not become an error of the service."""
    session = await box.create()

    ran = await box.run(session, FORGED, report_variables=True)

    assert ran.out == "refused\n"
    assert (ran.ending, ran.result.state_kept) == ("trapped", False)


async def test_half_a_character_before_an_interrupted_question_harms_nobody(box: Sandbox) -> None:
    """It once came out when the worker must not send output, which cost all its sessions."""
    session, other = await box.create(), await box.create()
    code = "import os\nos.write(1, b'\\xe2')\nllm_query('hold')"
    running = asyncio.create_task(box.run(session, code))
    await asyncio.wait_for(box.gateway.held.wait(), 30)

    await box.stub.InterruptExecution(wire.InterruptExecutionRequest(name=session))

    ran = await running
    assert (ran.ending, ran.out) == ("interrupted", "\ufffd")
    assert (await box.run(other, "1")).out == "1\n"


async def test_output_that_alternates_between_streams_is_joined(box: Sandbox) -> None:
    """Or each byte is a message: a cell could keep the service busy with nothing."""
    session = await box.create()

    ran = await box.run(
        session, "import os\nfor i in range(20000):\n    os.write(1, b'a'); os.write(2, b'b')"
    )

    assert (ran.out, ran.err) == ("a" * 20000, "b" * 20000)
    assert len(ran.events) < 3000


@pytest.mark.parametrize("value", ["[failed]", "{'a': [{'b': failed}]}", "(1, failed)"])
async def test_a_failed_query_inside_of_an_answer_is_none(box: Sandbox, value: str) -> None:
    """Its repr within a list must not pass for what a sub-model said."""
    session = await box.create()

    ran = await box.run(session, f"failed = FailedQuery(3, 'SAFETY', 'no')\nFINAL({value})")

    assert (ran.ending, ran.result.error.type) == ("raised", "TypeError")
    assert "#3" in ran.result.error.message
    assert not ran.result.HasField("final")


@pytest.mark.parametrize(
    "data", [b'{"a":' + b"1" * 5000 + b"}", b"[" * 100_000 + b"]" * 100_000, b"", b"[1] 2"]
)
async def test_json_that_cannot_be_read_names_its_context(box: Sandbox, data: bytes) -> None:
    mounts = [box.text(b"ok", "first"), box.text(data, "second")]
    mounts[1].kind = session_pb2.ContextMount.KIND_JSON

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(contexts=mounts)

    code, reason, metadata = details(caught.value)
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTEXT_UNREADABLE")
    assert metadata["context"] == "second"


@pytest.mark.parametrize("padding", [b"", b" " * 100_000])
@pytest.mark.parametrize("start", [b'["\xff', b'\xef\xbb\xbf["\xff'])
async def test_json_is_decoded_alike_at_any_size(
    box: Sandbox, start: bytes, padding: bytes
) -> None:
    """Malformed UTF-8 is replaced, and a byte order mark is none of the value."""
    mount = box.text(start + b'"]' + padding)
    mount.kind = session_pb2.ContextMount.KIND_JSON

    session = await box.create(contexts=[mount])

    assert (await box.run(session, "context")).out == "['\ufffd']\n"


async def test_many_documents_take_few_mappings(box: Sandbox) -> None:
    """A process may have 65,530: sessions of one worker must not use them up."""
    text = b"abcdefgh" * 8300
    size, form = len(text), shape(text)
    ranges = [
        session_pb2.DocumentRange(
            name=str(i), offset_bytes=i * size, size_bytes=size, text_shape=form
        )
        for i in range(1000)
    ]
    mount = box.text(text * 1000)
    mount.kind = session_pb2.ContextMount.KIND_DOCUMENTS
    mount.documents.extend(ranges)
    mount.ClearField("text_shape")
    session = await box.create(contexts=[mount])

    ran = await box.run(session, "len(context), set(map(len, context.values()))")

    assert mappings(box) < 600
    assert ran.out == "(1000, {66400})\n"


async def test_scattered_pages_come_back_with_few_mappings(box: Sandbox) -> None:
    session = await box.create()
    await box.run(session, "import numpy\nz = numpy.empty(100 << 20, 'u1')\nz[::8192] = 1")

    ran = await box.run(session, "import os; os._exit(1)")

    assert mappings(box) < 1200
    assert ran.ending == "exited"
    assert (await box.run(session, "int(z[::8192].sum())")).out == "12800\n"
