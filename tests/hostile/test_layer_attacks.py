"""A worker that makes of a session's layers what no layer is: found out, and its own loss."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox_service.errors import SessionLostError
from sandbox_service.execution_stream import Ended
from tests.hostile.puppet_supervisor import OPTIONS, run, supervisor
from tests.hostile.puppet_worker import Script, ended, output
from tests.support.eventually import eventually

PAGE = b"p" * 4096
HUGE_BYTES = 1 << 42


def oddly_sized(fd: int) -> None:
    os.pwrite(fd, b"x" * 100, 0)


def huge(fd: int) -> None:
    os.pwrite(fd, PAGE, HUGE_BYTES)


def sealed(fd: int) -> None:
    os.pwrite(fd, PAGE * 16, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)


def garbage(fd: int) -> None:
    os.pwrite(fd, os.urandom(1 << 20), 0)


def page_far_off(fd: int) -> None:
    os.ftruncate(fd, OPTIONS.limits.memory_bytes_max)
    os.pwrite(fd, PAGE, OPTIONS.limits.memory_bytes_max - len(PAGE))


@pytest.mark.parametrize("spoil", [oddly_sized, huge, sealed])
async def test_a_layer_that_is_none_ends_its_worker(
    tmp_path: Path, spoil: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Copied to others or stored, it would be their trouble."""
    async with supervisor(Script(spoils=spoil), tmp_path) as sessions, asyncio.timeout(60):
        attacked, neighbour = await sessions.create(OPTIONS), await sessions.create(OPTIONS)
        workers = list(sessions.pool.workers)
        assert await run(sessions, attacked)

        for use in (sessions.fork, sessions.checkpoint):
            with pytest.raises(SessionLostError, match="layer"):
                await use(attacked.name)

        await eventually(lambda: len(sessions.pool.workers) == 2)
        assert len({*workers} - {*sessions.pool.workers}) == 1
        assert "fathom.security" in {record.name for record in caplog.records}
        beside = await run(sessions, neighbour)
        assert beside is not None
        assert beside[1:] == [output(), Ended(frame=ended(), limit_reached=None)]


async def test_a_layer_that_is_still_mapped_for_writing_cannot_be_shared(tmp_path: Path) -> None:
    """Who holds the mapping could change what the copies have of it."""
    held: list[mmap.mmap] = []

    def mapped(fd: int) -> None:
        os.ftruncate(fd, 1 << 16)
        os.pwrite(fd, PAGE, 0)
        held.append(mmap.mmap(fd, 1 << 16))

    async with supervisor(Script(spoils=mapped), tmp_path) as sessions, asyncio.timeout(60):
        attacked = await sessions.create(OPTIONS)
        assert await run(sessions, attacked)

        with pytest.raises(SessionLostError, match="cannot be sealed"):
            await sessions.fork(attacked.name)
    held[0].close()


@pytest.mark.parametrize("spoil", [garbage, page_far_off])
async def test_pages_of_any_content_are_a_sessions_own_affair(
    tmp_path: Path, spoil: Callable[[int], None]
) -> None:
    """They are memory of a guest, whatever is in them: copied and stored like any other."""
    async with supervisor(Script(spoils=spoil), tmp_path) as sessions, asyncio.timeout(60):
        attacked = await sessions.create(OPTIONS)
        assert await run(sessions, attacked)

        copy = await sessions.fork(attacked.name)
        stored = await sessions.checkpoint(attacked.name)

        assert stored.size_bytes > 0
        assert await run(sessions, copy)


async def test_a_finished_layer_cannot_be_changed_by_the_worker_that_wrote_it(
    tmp_path: Path,
) -> None:
    """It keeps its descriptor, and tries after the layer was shared."""
    kept: list[int] = []

    def remember(fd: int) -> None:
        os.ftruncate(fd, 1 << 16)
        os.pwrite(fd, PAGE, 0)
        kept.append(os.dup(fd))

    async with supervisor(Script(spoils=remember), tmp_path) as sessions, asyncio.timeout(60):
        attacked = await sessions.create(OPTIONS)
        assert await run(sessions, attacked)
        await sessions.fork(attacked.name)

        for change in (
            lambda fd: os.pwrite(fd, b"changed", 0),
            lambda fd: os.ftruncate(fd, 0),
            lambda fd: os.ftruncate(fd, 1 << 20),
            lambda fd: mmap.mmap(fd, 4096),
            lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
        ):
            with pytest.raises(PermissionError):
                change(kept[0])
        os.close(kept[0])
