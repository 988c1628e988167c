"""Which of several equal deployments is asked first."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from llm_gateway.balancing import Load, ordered


@dataclass(frozen=True, eq=False)
class One:
    name: str
    weight: int = 1
    load: Load = field(default_factory=Load)


def firsts(*choices: One, draws: int = 4000) -> Counter[str]:
    source = random.Random(7)
    return Counter(ordered([choices], source.random)[0].name for _ in range(draws))


def test_steps_keep_their_order_and_everything_is_in_it_once() -> None:
    """What the operator put second is asked second, however idle it is."""
    a, b, c, d = One("a"), One("b"), One("c"), One("d")
    a.load.begin()

    order = ordered([[a], [b, c], [d]])

    assert order[0] is a
    assert order[3] is d
    assert {one.name for one in order[1:3]} == {"b", "c"}


def test_the_idle_are_asked_by_weight() -> None:
    """Without load, shares are what the operator wrote."""
    shares = firsts(One("big", weight=3), One("small", weight=1))

    assert 0.70 < shares["big"] / shares.total() < 0.80


def test_of_two_the_less_busy_is_asked() -> None:
    """Two are always compared, so the busier one of two is never first."""
    busy, idle = One("busy", weight=9), One("idle")
    busy.load.begin()

    assert firsts(busy, idle)["idle"] == 4000


def test_a_slow_one_gets_fewer_calls_and_a_failure_does_not_look_fast() -> None:
    """A deployment that answers errors in a millisecond must not draw the traffic."""
    slow, quick, broken = One("slow"), One("quick"), One("broken")
    for one, elapsed_s, is_good in ((slow, 2.0, True), (quick, 0.1, True), (broken, 2.0, True)):
        one.load.begin()
        one.load.end(elapsed_s, is_good=is_good)
    for _ in range(50):
        broken.load.begin()
        broken.load.end(0.001, is_good=False)

    assert broken.load.expected_s == slow.load.expected_s

    shares = firsts(slow, quick, broken)

    assert shares["quick"] > shares["slow"]
    assert shares["quick"] > shares["broken"]


def test_differences_that_are_chance_leave_the_choice_to_the_weights() -> None:
    """Else all calls would go to the one that was a millisecond faster once."""
    one, other = One("one"), One("other")
    for each, elapsed_s in ((one, 1.0), (other, 1.4)):
        each.load.begin()
        each.load.end(elapsed_s, is_good=True)

    shares = firsts(one, other)

    assert 0.4 < shares["one"] / shares.total() < 0.6


def test_one_that_was_slow_once_gets_its_chance_again() -> None:
    """Without calls nobody would ever see that it has become fast."""
    slow, quick = One("slow"), One("quick")
    for each, elapsed_s in ((slow, 4.0), (quick, 1.0)):
        each.load.begin()
        each.load.end(elapsed_s, is_good=True)

    assert firsts(slow, quick, draws=50)["slow"] == 0
    assert firsts(slow, quick, draws=400)["slow"] > 0


def test_the_usual_time_is_that_of_nineteen_in_twenty() -> None:
    """Of a hundred answers the five slowest are slow; of too few nothing can be said."""
    load = Load()
    for elapsed_s in range(19):
        load.begin()
        load.end(float(elapsed_s), is_good=True)
    assert load.slow_s is None

    for elapsed_s in range(100):
        load.begin()
        load.end(float(elapsed_s), is_good=True)
    assert load.slow_s == 95.0


def test_latency_follows_what_is_seen() -> None:
    """The first answer counts whole, later ones move the estimate towards them."""
    load = Load()
    for elapsed_s in (1.0, 2.0, 2.0):
        load.begin()
        load.end(elapsed_s, is_good=True)

    assert abs(load.expected_s - 1.36) < 1e-9
    assert load.in_flight == 0
