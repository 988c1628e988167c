"""What is done again and again while the service runs."""

from __future__ import annotations

import asyncio
import logging

import pytest

from common.database import DatabaseAwayError
from orchestrator.chores import Chore, doing


class Work:
    """Fails the first time that it is done; tells when it is done again."""

    def __init__(self, failure: Exception) -> None:
        self._failure: Exception | None = failure
        self.done = asyncio.Event()

    async def once(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        self.done.set()


@pytest.mark.parametrize(
    ("failure", "is_traced"), [(DatabaseAwayError(), False), (RuntimeError("a fault"), True)]
)
async def test_a_chore_that_fails_is_told_of_and_done_again(
    failure: Exception, is_traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep that ended with its first failure would let disks fill up. Of a neighbour that is
    away a line says enough; a fault of ours has to be found."""
    work = Work(failure)
    with caplog.at_level(logging.WARNING, logger="orchestrator.chores"):
        async with doing(Chore(name="sweep", work=work.once, every_s=0)):
            await asyncio.wait_for(work.done.wait(), 20)

    (told,) = caplog.records
    assert told.__dict__["chore"] == "sweep"
    assert (told.exc_info is not None) == is_traced


async def test_a_chore_that_rests_first_is_not_done_at_once() -> None:
    """Another chore's end shows that it had its time."""
    early, late = Work(DatabaseAwayError()), Work(DatabaseAwayError())
    async with doing(
        Chore(name="late", work=late.once, every_s=3600, is_begun_at_once=False),
        Chore(name="early", work=early.once, every_s=0),
    ):
        await asyncio.wait_for(early.done.wait(), 20)

    assert late._failure is not None


async def test_chores_end_with_their_block() -> None:
    """Or they would go on over a database that is closed."""
    work = Work(DatabaseAwayError())
    async with doing(Chore(name="sweep", work=work.once, every_s=0)):
        await asyncio.wait_for(work.done.wait(), 20)
    work.done.clear()

    for _ in range(10):
        await asyncio.sleep(0)

    assert not work.done.is_set()
