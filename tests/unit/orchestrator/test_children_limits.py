"""What a child run gets of what its parent has left."""

from __future__ import annotations

import pytest
from fathom.orchestrator.v1.run_pb2 import Limits
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidFieldError
from orchestrator.errors import ChildRunRefusedError, NothingLeftError
from orchestrator.runs.children.carving import (
    Left,
    check_asked,
    check_may_have_children,
    part_for_child,
    time_for_children_s,
)

PARENT = Limits(
    turns_max=7,
    time_max=Duration(seconds=600),
    sub_calls_max=100,
    tokens_max=1_000,
    cost_usd_nanos_max=10_000,
    depth_max=2,
    children_live_max=4,
)
LEFT = Left(tokens=900, cost_usd_nanos=9_000, sub_calls=90, time_s=500.0, live=4)


def part(asked: Limits | None = None, *, left: Left = LEFT, siblings: int = 1) -> Limits:
    """Return a child's limits."""
    found = part_for_child(asked or Limits(), parent=PARENT, left=left, siblings=siblings)
    assert found is not None
    return found.limits


@pytest.mark.parametrize(("siblings", "share"), [(1, 450), (2, 300), (8, 100)])
def test_a_child_that_asks_for_nothing_gets_an_equal_part(siblings: int, share: int) -> None:
    """One for each of its batch and one for the parent, whoever is first."""
    limits = part(siblings=siblings)

    assert limits.tokens_max == share
    assert limits.cost_usd_nanos_max == 10 * share
    assert limits.sub_calls_max == share // 10


def test_what_is_asked_for_is_lowered_to_what_is_left() -> None:
    asked = Limits(
        turns_max=3,
        tokens_max=5_000,
        cost_usd_nanos_max=50,
        sub_calls_max=0,
        depth_max=9,
        time_max=Duration(seconds=900),
    )

    limits = part(asked)

    assert (limits.turns_max, limits.tokens_max, limits.cost_usd_nanos_max) == (3, 900, 50)
    assert (limits.sub_calls_max, limits.depth_max) == (0, 1)
    assert limits.time_max.seconds == 500


def test_a_child_at_the_bottom_takes_one_place_alone() -> None:
    asked = Limits(depth_max=0, children_live_max=3)

    found = part_for_child(asked, parent=PARENT, left=LEFT, siblings=1)

    assert found is not None
    assert (found.live, found.limits.children_live_max) == (1, 0)


@pytest.mark.parametrize(("siblings", "live"), [(1, 4), (2, 2), (3, 1), (50, 1)])
def test_places_are_shared_with_what_is_below(siblings: int, live: int) -> None:
    """The tree below a run never holds more than it may, at any depth."""
    found = part_for_child(Limits(), parent=PARENT, left=LEFT, siblings=siblings)

    assert found is not None
    assert (found.live, found.limits.children_live_max) == (live, live - 1)


def test_a_child_waits_where_no_place_is_left() -> None:
    left = Left(tokens=900, cost_usd_nanos=9_000, sub_calls=90, time_s=500.0, live=0)

    assert part_for_child(Limits(), parent=PARENT, left=left, siblings=1) is None


@pytest.mark.parametrize(
    ("left", "limit"),
    [
        (Left(tokens=0, cost_usd_nanos=1, sub_calls=1, time_s=9.0, live=1), "tokens_max"),
        (Left(tokens=1, cost_usd_nanos=0, sub_calls=1, time_s=9.0, live=1), "cost_usd_nanos_max"),
        (Left(tokens=1, cost_usd_nanos=1, sub_calls=1, time_s=0.9, live=1), "time_max"),
    ],
)
def test_nothing_is_given_where_nothing_is_left(left: Left, limit: str) -> None:
    with pytest.raises(NothingLeftError) as caught:
        part(left=left)

    assert caught.value.metadata["limit"] == limit


def test_the_least_that_is_left_is_enough() -> None:
    left = Left(tokens=1, cost_usd_nanos=1, sub_calls=0, time_s=1.0, live=1)

    assert part(left=left).tokens_max == 1


@pytest.mark.parametrize("field", ["depth_max", "children_live_max"])
def test_a_run_that_may_have_no_child_is_refused_one(field: str) -> None:
    parent = Limits()
    parent.CopyFrom(PARENT)
    check_may_have_children("runs/r", parent)
    setattr(parent, field, 0)

    with pytest.raises(ChildRunRefusedError) as caught:
        check_may_have_children("runs/r", parent)

    assert caught.value.metadata["limit"] == field


@pytest.mark.parametrize(
    "asked",
    [
        Limits(turns_max=0),
        Limits(tokens_max=0),
        Limits(sub_calls_max=-1),
        Limits(children_live_max=-1),
        Limits(time_max=Duration()),
    ],
)
def test_impossible_limits_are_named(asked: Limits) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_asked(asked)

    field = asked.ListFields()[0][0].name if asked.ListFields() else "time_max"
    assert caught.value.metadata["field"] == f"limits.{field}"


@pytest.mark.parametrize(
    ("time_max_s", "elapsed_s", "left_s"), [(600, 0, 565), (600, 565, 4.5), (10, 0, 8.1)]
)
def test_a_child_ends_before_its_parent_must(
    time_max_s: float, elapsed_s: float, left_s: float
) -> None:
    """Its answer is of use only while the parent's code still runs."""
    assert time_for_children_s(time_max_s, elapsed_s) == pytest.approx(left_s)


@given(
    tokens=st.integers(1, 10**6),
    cost=st.integers(1, 10**12),
    sub_calls=st.integers(0, 10**4),
    live=st.integers(1, 64),
    asked=st.lists(st.integers(1, 10**6) | st.none(), max_size=30),
)
def test_the_parts_of_a_batch_never_exceed_what_was_left(
    tokens: int, cost: int, sub_calls: int, live: int, asked: list[int | None]
) -> None:
    left = Left(tokens=tokens, cost_usd_nanos=cost, sub_calls=sub_calls, time_s=9.0, live=live)
    for begun, tokens_max in enumerate(asked):
        wanted = Limits() if tokens_max is None else Limits(tokens_max=tokens_max)
        try:
            found = part_for_child(wanted, parent=PARENT, left=left, siblings=len(asked) - begun)
        except NothingLeftError:
            break
        if found is None:
            break
        left = Left(
            tokens=left.tokens - found.limits.tokens_max,
            cost_usd_nanos=left.cost_usd_nanos - found.limits.cost_usd_nanos_max,
            sub_calls=left.sub_calls - found.limits.sub_calls_max,
            time_s=9.0,
            live=left.live - found.live,
        )

    assert min(left.tokens, left.cost_usd_nanos, left.sub_calls, left.live) >= 0
