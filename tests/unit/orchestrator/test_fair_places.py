"""Places that tenants share: how many there are, and who has the next one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from orchestrator.fair_places import FairPlaces

WAIT_S = 30.0


class Visitors:
    """Those who want a place, by name, and who has had one."""

    def __init__(self, places_max: int) -> None:
        self.places = FairPlaces(places_max)
        self.came: list[str] = []
        self._may_go: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def want(self, *names: str) -> None:
        """Have those come whose tenant is the first letter of their names."""
        for name in names:
            self._may_go[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._visit(name))
        await self._settle()

    async def go(self, *names: str) -> None:
        """Have those leave who have a place."""
        for name in names:
            self._may_go[name].set()
            await self._tasks[name]
        await self._settle()

    async def give_up(self, name: str) -> None:
        """Have one wait no longer."""
        self._tasks[name].cancel()
        await asyncio.wait({self._tasks[name]})

    async def close(self) -> None:
        """Have all go."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _visit(self, name: str) -> None:
        async with self.places.place(name[0], wait_s=WAIT_S):
            self.came.append(name)
            await self._may_go[name].wait()

    @staticmethod
    async def _settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def visitors(places_max: int) -> AsyncIterator[Visitors]:
    made = Visitors(places_max)
    yield made
    await made.close()


async def test_no_more_have_a_place_than_there_are() -> None:
    async with visitors(2) as here:
        await here.want("a1", "a2", "a3")
        assert here.came == ["a1", "a2"]
        await here.go("a2")
        assert here.came == ["a1", "a2", "a3"]


async def test_a_long_line_of_one_tenant_holds_up_no_other() -> None:
    """The one with the fewest places comes first, and those that have as many take turns."""
    async with visitors(2) as here:
        await here.want("a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1")
        for leaver in ("a1", "a2", "b1", "a3", "c1"):
            await here.go(leaver)
        assert here.came == ["a1", "a2", "b1", "a3", "c1", "b2", "a4"]


async def test_who_gives_up_is_passed_over_and_takes_no_place_along() -> None:
    async with visitors(1) as here:
        await here.want("a1", "b1", "b2", "c1")
        await here.give_up("b1")
        await here.give_up("c1")
        await here.go("a1")
        assert here.came == ["a1", "b2"]
        await here.go("b2")
        await here.want("d1")
        assert here.came == ["a1", "b2", "d1"]


async def test_a_place_that_comes_as_its_taker_gives_up_is_passed_on() -> None:
    async with visitors(1) as here:
        async with here.places.place("a", wait_s=WAIT_S):
            await here.want("b1", "c1")
        await here.give_up("b1")  # it has not heard yet that the place is its own
        await here.want()
        assert here.came == ["c1"]


async def test_nobody_waits_for_longer_than_he_wants_to() -> None:
    places = FairPlaces(1)
    async with places.place("a", wait_s=WAIT_S):
        with pytest.raises(TimeoutError):
            async with places.place("b", wait_s=0.0):
                pass
    async with places.place("b", wait_s=WAIT_S):
        pass
