"""Events of a run on the wire: joined as far as a response may go."""

from __future__ import annotations

import pytest
from fathom.orchestrator.v1.run_event_pb2 import Notice, RunEvent

from orchestrator.runs import watch_messages
from orchestrator.runs.watch_messages import responses


def events(count: int) -> list[RunEvent]:
    return [RunEvent(sequence=n, notice=Notice(text="x" * 100)) for n in range(1, count + 1)]


def test_without_the_wish_each_event_has_its_response() -> None:
    """Clients that know of no others would miss them."""
    told = list(responses(events(3), joined=False))

    assert [(each.event.sequence, len(each.further)) for each in told] == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize(
    ("spare_bytes", "lengths"), [(0, [3, 2]), (-1, [2, 2, 1])], ids=["fits", "a byte too many"]
)
def test_a_response_holds_what_fits(
    monkeypatch: pytest.MonkeyPatch, spare_bytes: int, lengths: list[int]
) -> None:
    """A client takes messages up to a size."""
    made = events(5)
    room = sum(event.ByteSize() for event in made[:3]) + spare_bytes
    monkeypatch.setattr(watch_messages, "_JOINED_BYTES_MAX", room)

    told = list(responses(made, joined=True))

    assert [1 + len(each.further) for each in told] == lengths
    assert [event for each in told for event in (each.event, *each.further)] == made


def test_an_event_that_is_too_large_by_itself_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_messages, "_JOINED_BYTES_MAX", 1)

    assert [len(each.further) for each in responses(events(2), joined=True)] == [0, 0]
