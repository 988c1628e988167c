"""Behind all of its walls a worker does its whole work, and loads nothing more for it."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from sandbox_service.pool import WorkerPool
from tests.support import sandbox as support
from tests.support.sandbox import Sandbox, guest, shape

pytestmark = pytest.mark.guest
COMMAND = (sys.executable, "-I", "-m", "tests.jail.watched_worker")
LAZY_BYTES = 1 << 20
TEXTS = {
    "ascii": b"a line\n" * 50_000,
    "latin1": "é line\n".encode() * 50_000,
    "ucs2": "漢 line\n".encode() * 50_000,
    "ucs4": "🙂 line\n".encode() * 50_000,
    "lazy": b"a line of many\n" * 150_000,
    "lazy_wide": "漢 of many\n".encode() * 150_000,
}
LAZY_USE = """
print(len(lazy), lazy[7:20], lazy.find("many"), lazy.count("line"), "none" in lazy)
print(len(grep("l.ne", lazy, limit=3)))
print(lazy_wide[100_000:100_003], len(lazy_wide.splitlines()))
"""
LAZY_OUT = """2250000 of many
a lin 10 150000 False
3
漢 o 150000
"""


@pytest.fixture
async def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sandbox]:
    """Run the service with a worker that ends where it opens anything."""
    pool = functools.partial(WorkerPool, command=COMMAND)
    monkeypatch.setattr(support, "WorkerPool", pool)
    settings: dict[str, Any] = {"lazy_context_bytes_min": LAZY_BYTES, "sessions_max": 60}
    async with support.sandbox(guest(), tmp_path, **settings) as running:
        (worker,) = running.worker_pids()
        yield running
        # Had it opened anything it would have been replaced.
        assert running.worker_pids() == [worker]


def mounts(box: Sandbox) -> list[session_pb2.ContextMount]:
    json = b'{"items": [' + b"1, " * 1000 + b"2]}"
    documents = "first sécond".encode()
    return [
        *(box.text(data, variable) for variable, data in TEXTS.items()),
        session_pb2.ContextMount(
            variable="data",
            kind=session_pb2.ContextMount.KIND_JSON,
            blob_key=box.store(json),
            size_bytes=len(json),
        ),
        session_pb2.ContextMount(
            variable="pages",
            kind=session_pb2.ContextMount.KIND_DOCUMENTS,
            blob_key=box.store(documents),
            size_bytes=len(documents),
            documents=[
                session_pb2.DocumentRange(
                    name=name,
                    offset_bytes=offset,
                    size_bytes=len(text),
                    text_shape=shape(text),
                )
                for name, offset, text in (("a", 0, b"first "), ("b", 6, "sécond".encode()))
            ],
        ),
    ]


async def test_contexts_of_every_kind_are_read(box: Sandbox) -> None:
    session = await box.create(contexts=mounts(box))

    small = await box.run(session, "print(ascii[:6], latin1[0], ucs2[0], ucs4[0], pages['b'])")
    lazy = await box.run(session, LAZY_USE)

    assert small.out == "a line é 漢 🙂 sécond\n"
    assert lazy.ending == "completed", lazy.err
    assert lazy.out == LAZY_OUT


async def test_a_hundred_megabytes_are_loaded(box: Sandbox) -> None:
    text = b"0123456789" * 10_000_000
    limits = session_pb2.SessionLimits(memory_bytes_max=1 << 30)

    session = await box.create(contexts=[box.text(text)], limits=limits)

    assert (await box.run(session, "print(len(context))")).out == "100000000\n"


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("print('x' * 100_000)", "completed"),
        ("1 / 0", "raised"),
        ("def", "syntax_error"),
        ("import sys; sys.exit(3)", "exited"),
        ("while True: pass", "out_of_fuel"),
        ("x = []\nwhile True: x = [x, x]", "out_of_memory"),
        ("print(llm_query('a')); llm_query_batched(['b', 'c'])", "completed"),
        (
            "import random, uuid; from time import sleep, time; sleep(0.01); uuid.uuid4(), time()",
            "completed",
        ),
        ("import numpy, json, re, csv; numpy.ones(9).sum()", "completed"),
        ("def f(): f()\nf()", "raised"),
        ("open('/etc/passwd')", "raised"),
        ("FINAL('done')", "completed"),
    ],
)
async def test_a_cell_of_any_ending_leaves_the_state(box: Sandbox, code: str, ending: str) -> None:
    """Traps need the engine's signal handlers, and a new instance behind the walls."""
    limits = session_pb2.SessionLimits(fuel_max=8_000_000_000, memory_bytes_max=64 << 20)
    session = await box.create(limits=limits)
    await box.run(session, "keep = 7")

    ran = await box.run(session, code, report_variables=True)

    assert ran.ending == ending, ran.result
    assert (await box.run(session, "keep")).out == "7\n"


async def test_a_session_is_copied(box: Sandbox) -> None:
    session = await box.create()
    await box.run(session, "keep = list(range(100_000))")

    request = wire.ForkSessionRequest(name=session)
    copy = (await box.stub.ForkSession(request, timeout=30)).session.name

    assert (await box.run(copy, "len(keep)")).out == "100000\n"
    assert (await box.run(session, "len(keep)")).out == "100000\n"


async def test_libraries_that_are_imported_beforehand_are_there(box: Sandbox) -> None:
    session = await box.create(profile="pandas")

    ran = await box.run(session, "import pandas as p; print(p.Series([1, 2]).sum())")

    assert ran.out == "3\n"


async def test_fifty_sessions_work_at_once(box: Sandbox) -> None:
    """A thread each: the only kind of process that may still be started is none."""
    sessions = await asyncio.gather(*[box.create() for _ in range(50)])
    ran = await asyncio.gather(*[box.run(name, "sum(range(10_000))") for name in sessions])

    assert [each.out for each in ran] == ["49995000\n"] * 50
