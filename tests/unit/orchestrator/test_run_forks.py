"""A fork goes on from the log of another run: with its session, at no cost, beyond its answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ForkTurnUnknownError
from tests.support.driven_run import Bench, undisturbed
from tests.support.memory_neighbours import Reply
from tests.support.run_scripts import cells


async def test_a_fork_goes_on_with_the_session_of_its_turn_at_no_cost(tmp_path: Path) -> None:
    """What the other run has found and paid is the fork's; what comes after is its own."""
    replies: list[Reply] = [
        cells("a = [rand(), now(), ask('one')]"),
        cells("try:\n    ask('fail')\nexcept RuntimeError as error:\n    b = str(error)"),
        cells("FINAL((a, b, rand()))"),
    ]
    bench, record = await undisturbed(tmp_path, replies)
    paid = list(bench.model.paid)

    fork = await bench.fork(record, after_turn=2, question="And else?")
    assert await bench.drive(fork)

    assert fork.progress.answer == record.progress.answer
    assert bench.model.paid[len(paid) :] == ["0b/3/0/0"]
    assert fork.progress.usage.calls == 1
    assert (fork.head.forked_from, fork.head.forked_after_turn) == (record.head.name, 2)
    assert fork.progress.turns == 3
    asked = [e for e in bench.events(fork) if e.HasField("turn_started")]
    assert [e.turn for e in asked] == [1, 2, 3]
    assert not [e for e in bench.events(fork) if e.HasField("notice")]


async def test_a_run_has_no_fork_after_a_turn_that_it_did_not_go_on_from(tmp_path: Path) -> None:
    bench, record = await undisturbed(tmp_path, [cells("a = 1"), "FINAL(done)"])

    with pytest.raises(ForkTurnUnknownError) as caught:
        await bench.fork(record, after_turn=2, question="And else?")

    assert caught.value.metadata == {"run": record.head.name, "turn": "2", "turns": "1"}


@pytest.mark.parametrize("direct_tokens_max", [0, 1_000], ids=["with code", "direct"])
async def test_a_fork_goes_on_beyond_an_answer_that_its_own_spec_would_take(
    tmp_path: Path, direct_tokens_max: int
) -> None:
    """Who forks after turn 2 wants turn 3, not an early answer that was refused at the time."""
    replies: list[Reply] = ["FINAL(early, confidence=0.5)", cells("a = 1"), "FINAL(late)"]
    bench = Bench(tmp_path, [*replies[:2], "FINAL(late, confidence=0.95)"])
    (tmp_path / "contexts").mkdir()
    (tmp_path / "contexts" / "a").write_bytes(b"x")
    record = bench.new_run()
    record.head.spec.confidence_min = 0.9
    record.head.spec.direct_tokens_max = direct_tokens_max
    assert await bench.drive(record)
    assert (record.progress.answer.text, record.progress.turns) == ("late", 3)

    fork = await bench.fork(record, after_turn=2, question="And else?", confidence_min=0.1)
    assert await bench.drive(fork)

    assert (fork.progress.answer.text, fork.progress.turns) == ("late", 3)
    kinds = [
        [e.notice.kind for e in bench.events(run) if e.HasField("notice")] for run in (record, fork)
    ]
    assert kinds[0] == kinds[1]
