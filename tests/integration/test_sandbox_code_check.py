"""The code check in a real guest: an alarm that reaches the caller, and refuses where told to."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.sandbox import Ran, Sandbox, guest, sandbox

pytestmark = pytest.mark.guest
FORGED = '{"call":"findings","findings":[%s]}'
ONE = '{"pattern":"ctypes","line":1,"detail":""}'


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


def findings(ran: Ran) -> list[tuple[str, int, str]]:
    return [(f.pattern, f.line, f.detail) for f in ran.result.findings]


async def test_findings_are_reported_and_the_code_runs(box: Sandbox) -> None:
    """An alarm, not a wall: the wall is WebAssembly."""
    session = await box.create()

    ran = await box.run(session, "x = 1\nf = lambda: 0\nf.__code__.co_name")

    assert (ran.ending, ran.out) == ("completed", "'<lambda>'\n")
    assert findings(ran) == [("dunder-walk", 3, ".__code__")]


async def test_ordinary_cells_have_no_findings_after_suspicious_ones(box: Sandbox) -> None:
    session = await box.create()
    await box.run(session, "import ctypes")

    assert findings(await box.run(session, "x = 1")) == []
    assert findings(await box.run(session, "x = (")) == []


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import ctypes, os\nos.abort()", "trapped"),
        ("import ctypes, os\nos._exit(1)", "exited"),
        ("import ctypes, sys\nsys.modules['fathom_guest.cells']._report = None", "trapped"),
        ("import ctypes\n1 / 0", "raised"),
    ],
)
async def test_findings_survive_what_the_code_does_to_its_guest(
    box: Sandbox, code: str, ending: str
) -> None:
    """They are told before the cell runs: what ends the guest must not hide them."""
    ran = await box.run(await box.create(), code)

    assert ran.ending == ending
    assert ("ctypes", 1, "import ctypes") in findings(ran)


async def test_a_check_that_refuses_lets_nothing_run(tmp_path: Path) -> None:
    async with sandbox(guest(), tmp_path, code_check="refuse") as box:
        session = await box.create()
        await box.run(session, "x = 1")

        ran = await box.run(session, "x = 2\nllm_query('a')\nimport socket")

        assert (ran.ending, ran.result.state_kept) == ("refused", True)
        assert ran.result.error.type == "RefusedError"
        assert "line 3: socket (import socket)" in ran.result.error.message
        assert "line 3: socket" in ran.err
        assert findings(ran) == [("socket", 3, "import socket")]
        assert ran.kinds().count("sub_call_started") == 0
        assert (await box.run(session, "x")).out == "1\n"


async def test_a_check_that_is_off_looks_at_nothing(tmp_path: Path) -> None:
    async with sandbox(guest(), tmp_path, code_check="off") as box:
        ran = await box.run(await box.create(), "import ctypes")

        assert (ran.ending, findings(ran)) == ("completed", [])


async def test_each_finding_is_a_security_event(
    box: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    session = await box.create(labels={"run": "runs/7"})

    await box.run(session, "import ctypes\nimport socket")

    events = [vars(record) for record in caplog.records if record.name == "fathom.security"]
    assert [(event["pattern"], event["code_line"]) for event in events] == [
        ("ctypes", 1),
        ("socket", 2),
    ]
    assert {(event["session"], event["run"]) for event in events} == {(session, "runs/7")}
    assert {event["levelno"] for event in events} == {logging.WARNING}


async def test_code_that_is_hard_to_check_runs_all_the_same(box: Sandbox) -> None:
    """What Python can compile must not end in the check."""
    session = await box.create()
    deep = "+".join(["'a'"] * 200)

    ran = await box.run(session, f"import os\nx = {deep}\nlen(x)")

    assert (ran.ending, ran.out) == ("completed", "200\n")


@pytest.mark.parametrize(
    "frame",
    [
        FORGED % "",
        FORGED % ONE.replace("ctypes", "mine"),
        FORGED % ONE.replace("1", "-1"),
        FORGED % ONE.replace("1", "3000000000"),
        FORGED % ONE.replace('""', f'"{"x" * 201}"'),
        FORGED % ",".join([ONE] * 21),
    ],
)
async def test_a_forged_report_is_refused(box: Sandbox, frame: str) -> None:
    """Patterns are labels of a metric, and lines go over the wire: no guest may choose them."""
    session = await box.create()
    await box.run(session, "import _host")

    ran = await box.run(session, f"_host.call({frame!r}.encode())")

    assert (ran.ending, ran.result.error.type) == ("raised", "ConnectionRefusedError")


async def test_findings_are_reported_once_a_cell(box: Sandbox) -> None:
    """Code cannot replace what was noticed about it."""
    session = await box.create()
    frame = b'{"call":"findings","findings":[{"pattern":"tracing","line":1,"detail":""}]}'

    ran = await box.run(session, f"import _host\n_host.call({frame!r})")

    assert ran.result.error.type == "ConnectionRefusedError"
    assert {pattern for pattern, _, _ in findings(ran)} == {"host-door"}
