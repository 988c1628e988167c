"""Sessions as images: copies, checkpoints, and the memory that an idle one takes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from bench.measurement import Figure
from bench.processes import taken_bytes
from bench.sampling import without_garbage
from bench.sandbox_client import Sandbox
from bench.sandbox_stack import SandboxStack

_SESSIONS = 100
_STATE = """
import json, re
class Note:
    def __init__(self, text): self.text = text
notes = {n: Note(f'note {n}') for n in range(2_000)}
"""
_ANSWER_CELL = "print(len(notes), answer)"


async def measure(stack: SandboxStack) -> AsyncIterator[Figure]:
    """Yield figures of a running service."""
    yield "idle_session_rss_mb", await _idle_memory(stack)
    forks, answers = await _forks(stack.sandbox)
    yield "fork_ms", forks
    yield "fork_answer_ms", answers
    yield "checkpoint_restore_ms", await _checkpoints(stack.sandbox)


async def _forks(sandbox: Sandbox) -> tuple[list[float], list[float]]:
    """From ForkSession to its answer, when the copy is in a worker; and to the answer of the
    copy's first cell, out of the state copied."""
    session = await sandbox.create()
    await sandbox.execute(session, _STATE)
    forks, answers = [], []
    with without_garbage():
        for answer in range(22):
            await sandbox.execute(session, f"answer = {answer}")
            started = time.perf_counter()
            copy = await sandbox.fork(session)
            forks.append((time.perf_counter() - started) * 1000)
            output = await sandbox.execute(copy, _ANSWER_CELL)
            answers.append((time.perf_counter() - started) * 1000)
            _check(output, answer)
            await sandbox.delete(copy)
    await sandbox.delete(session)
    return forks[1:], answers[1:]


async def _checkpoints(sandbox: Sandbox) -> list[float]:
    """CheckpointSession, RestoreSession and the answer of a cell, all in all.

    Each checkpoint has content of its own, so that none is found to be stored already.
    """
    samples = []
    with without_garbage():
        for answer in range(12):
            session = await sandbox.create()
            await sandbox.execute(session, f"{_STATE}\nanswer = {answer}")
            started = time.perf_counter()
            key = await sandbox.checkpoint(session)
            restored = await sandbox.restore(key)
            output = await sandbox.execute(restored, _ANSWER_CELL)
            samples.append((time.perf_counter() - started) * 1000)
            _check(output, answer)
            for each in (session, restored):
                await sandbox.delete(each)
    return samples[1:]


async def _idle_memory(stack: SandboxStack) -> list[float]:
    """What a session takes that has run a cell and waits, in the service and all its workers."""
    samples = []
    for _ in range(6):
        await stack.emptied()
        before = taken_bytes(stack.pid, stack.workers)
        sessions = [await stack.sandbox.create() for _ in range(_SESSIONS)]
        for number, session in enumerate(sessions):
            await stack.sandbox.execute(session, f"answer = {number}")
        growth = taken_bytes(stack.pid, stack.workers) - before
        samples.append(growth / _SESSIONS / 1e6)
        for number, session in enumerate(sessions):
            if await stack.sandbox.execute(session, "print(answer)") != f"{number}\n":
                raise RuntimeError("a session answered for another")
            await stack.sandbox.delete(session)
    return samples[1:]


def _check(output: str, answer: int) -> None:
    if output != f"2000 {answer}\n":
        raise RuntimeError(f"the copy answered {output!r}, not with the state of {answer}")
