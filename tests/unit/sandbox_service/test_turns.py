"""Who runs when more guests want to than there are processors."""

from __future__ import annotations

import threading

import pytest

from sandbox_service.worker.turns import Turn, Turns

WAIT_S = 30.0


class Guest:
    """A thread that takes its turn, says so, and ends when it is told to."""

    def __init__(self, turns: Turns, order: list[str], name: str) -> None:
        self.turn = Turn(turns)
        self.has_begun = threading.Event()
        self.may_end = threading.Event()
        self._order, self._name = order, name
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self.turn.running():
            self._order.append(self._name)
            self.has_begun.set()
            assert self.may_end.wait(WAIT_S)

    def end(self) -> None:
        self.may_end.set()
        self.thread.join(WAIT_S)


def queued(turns: Turns, order: list[str], name: str) -> Guest:
    """Start a guest that has to wait, and return once it does."""
    waiting = turns.waiting_count
    guest = Guest(turns, order, name)
    while turns.waiting_count == waiting:
        guest.has_begun.wait(0.001)
    return guest


def begun(turns: Turns, order: list[str], name: str) -> Guest:
    guest = Guest(turns, order, name)
    assert guest.has_begun.wait(WAIT_S)
    return guest


@pytest.fixture
def order() -> list[str]:
    return []


def test_as_many_run_as_there_are_places(order: list[str]) -> None:
    turns = Turns(2)
    first, second = begun(turns, order, "a"), begun(turns, order, "b")
    third = queued(turns, order, "c")

    assert order == ["a", "b"]

    first.end()
    assert third.has_begun.wait(WAIT_S)
    second.end()
    third.end()


def test_one_that_begins_goes_before_those_that_have_had_their_time(order: list[str]) -> None:
    """A short cell does not wait for all the long ones."""
    turns = Turns(1)
    long_one = Turn(turns)
    with long_one.running():
        short = queued(turns, order, "short")
        for _ in range(2):
            long_one.on_tick()
            assert order == []
        passing = threading.Thread(target=long_one.on_tick)
        passing.start()
        assert short.has_begun.wait(WAIT_S)
        short.end()
        passing.join(WAIT_S)

    assert order == ["short"]


def test_those_that_run_for_long_take_turns(order: list[str]) -> None:
    turns = Turns(1)
    turn = Turn(turns)
    with turn.running():
        for _ in range(3):
            turn.on_tick()  # nobody waits: it goes on
        other = queued(turns, order, "other")
        passing = threading.Thread(target=turn.on_tick)
        passing.start()
        assert other.has_begun.wait(WAIT_S)
        assert passing.is_alive()
        other.end()
        passing.join(WAIT_S)
        assert not passing.is_alive()


def test_one_that_waits_for_something_leaves_its_place(order: list[str]) -> None:
    turns = Turns(1)
    turn = Turn(turns)
    with turn.running():
        with turn.waiting():
            begun(turns, order, "other").end()
        assert turns.waiting_count == 0

    assert order == ["other"]


def test_one_that_is_to_end_waits_for_nobody(order: list[str]) -> None:
    """An interrupt does not wait until all others have had their time."""
    turns = Turns(1)
    first = begun(turns, order, "a")
    second = queued(turns, order, "b")

    second.turn.hurry()

    assert second.has_begun.wait(WAIT_S)
    second.end()
    third = queued(turns, order, "c")
    assert order == ["a", "b"]
    first.end()
    assert third.has_begun.wait(WAIT_S)
    third.end()


def test_one_that_was_told_to_end_before_it_waited_does_not_wait(order: list[str]) -> None:
    turns = Turns(1)
    first = begun(turns, order, "a")
    turn = Turn(turns)
    turn.hurry()

    with turn.running():
        order.append("b")

    assert order == ["a", "b"]
    first.end()
