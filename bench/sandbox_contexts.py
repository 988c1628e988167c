"""Contexts of the sandbox: real texts of 100 MB, and texts that are larger than any session."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from fathom.sandbox.v1 import session_pb2

from bench.blobs import NEEDLE
from bench.measurement import Figure
from bench.processes import PeakGrowth
from bench.sampling import without_garbage
from bench.sandbox_client import Sandbox
from bench.sandbox_stack import SandboxStack

_TEXT_BYTES = 100_000_000
_UNICODE_KINDS = ("latin1", "cjk", "emoji")
_HUGE_BYTES = 10_000_000_000
_ISLAND_STEP_BYTES = 64 << 20
_LOG_BYTES = 2_000_000_000
_SESSION_BYTES = 256 << 20
_SMALL = session_pb2.SessionLimits(memory_bytes_max=_SESSION_BYTES)
_PATTERNS = {
    "lazy_grep_gb_per_s": ("silver heron of", ""),
    "lazy_grep_ignore_case_gb_per_s": ("SILVER heron OF", ", ignore_case=True"),
    "lazy_grep_classes_gb_per_s": (r"[A-Z][a-z]+ [A-Z][a-z]+b\b", ""),
}
"""By figure: a literal, a literal whatever its case, and classes of characters."""


async def measure(stack: SandboxStack) -> AsyncIterator[Figure]:
    """Yield figures of a running service."""
    for part in (_loaded_texts, _huge_text, _searches):
        async for figure in part(stack):
            yield figure


async def _loaded_texts(stack: SandboxStack) -> AsyncIterator[Figure]:
    times, ratios = await _loads(stack, stack.blobs.text("ascii", _TEXT_BYTES))
    yield "context_100mb_ascii_s", times
    yield "context_100mb_ascii_rss_ratio", ratios
    every_time = []
    for kind in _UNICODE_KINDS:
        times, _ = await _loads(stack, stack.blobs.text(kind, _TEXT_BYTES))
        yield f"context_100mb_{kind}_s", times
        every_time += times
    yield "context_100mb_unicode_s", every_time


async def _loads(
    stack: SandboxStack, mount: session_pb2.ContextMount
) -> tuple[list[float], list[float]]:
    """Return the seconds that sessions take to start with a text, and their share of memory.

    That is how much the worker grows at its peak, over the text's size, with two cells run.
    """
    sandbox = stack.sandbox
    times, ratios = [], []
    for _ in range(6):
        await stack.emptied()
        growth = PeakGrowth(stack.workers)
        with without_garbage():
            started = time.perf_counter()
            session = await sandbox.create(mount)
            times.append(time.perf_counter() - started)
        await _expect(sandbox, session, "len(context)", mount.text_shape.characters)
        await _expect(sandbox, session, "type(context) is str and context.count('\\n') > 9", True)
        ratios.append(growth.end() / mount.size_bytes)
        await sandbox.delete(session)
    stack.blobs.remove(mount)
    return times[1:], ratios[1:]


async def _huge_text(stack: SandboxStack) -> AsyncIterator[Figure]:
    """Open 10 GB of text in a session of 256 MB, and search all of it.

    The text is mostly a hole, which reads as NUL characters, with 1 MiB of log every 64 MiB.
    """
    sandbox = stack.sandbox
    mount = stack.blobs.sparse(_HUGE_BYTES, _ISLAND_STEP_BYTES)
    await sandbox.delete(await sandbox.create(mount, limits=_SMALL))  # makes the index
    times, growths = [], []
    for _ in range(5):
        await stack.emptied()
        growth = PeakGrowth(stack.workers)
        with without_garbage():
            started = time.perf_counter()
            session = await sandbox.create(mount, limits=_SMALL)
            times.append(time.perf_counter() - started)
        await _expect(sandbox, session, "len(context)", _HUGE_BYTES)
        found = "[m.text for m in context.grep('silver heron of')]"
        await _expect(sandbox, session, found, ["silver heron of"])
        await _expect(sandbox, session, f"context[{_HUGE_BYTES - 32}:].strip()", NEEDLE)
        growths.append(growth.end() / 1e6)
        await sandbox.delete(session)
    stack.blobs.remove(mount)
    yield "lazy_open_10gb_s", times
    yield "lazy_rss_mb", growths


async def _searches(stack: SandboxStack) -> AsyncIterator[Figure]:
    """Search 2 GB of log, which the page cache holds, for what stands in its last line."""
    sandbox = stack.sandbox
    mount = stack.blobs.log(_LOG_BYTES)
    session = await sandbox.create(mount, limits=_SMALL)
    for figure, (pattern, options) in _PATTERNS.items():
        samples = []
        for _ in range(6):
            cell = f"found = context.grep({pattern!r}{options})"
            started = time.perf_counter()
            await sandbox.execute(session, cell)
            samples.append(_LOG_BYTES / (time.perf_counter() - started) / 1e9)
            await _expect(sandbox, session, "len(found)", 1)
        yield figure, samples[1:]
    await sandbox.delete(session)
    stack.blobs.remove(mount)


async def _expect(sandbox: Sandbox, session: str, expression: str, value: object) -> None:
    output = await sandbox.execute(session, f"print(repr({expression}))")
    if output != f"{value!r}\n":
        raise RuntimeError(f"{expression} is {output[:200]!r}, not {value!r}")
