"""A run goes on from its log: wherever the process that drove it died, the next one brings it to
the same end, tells nothing twice and pays nothing twice.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.orchestrator.v1.run_pb2 import Run

from common.database import DatabaseAwayError
from orchestrator.conversations.recall import Earlier, KeptSession
from orchestrator.model_catalog import TierFacts
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord
from orchestrator.runs.ports import ModelCall
from tests.support.driven_run import Bench, told, undisturbed
from tests.support.fake_gateway import COST_NANOS, ScriptedError
from tests.support.memory_neighbours import Reply, failure
from tests.support.run_scripts import DONE, cells

SCRIPTS: dict[str, list[Reply]] = {
    "variables, time and randomness": [
        cells("a = rand()\nprint(a, now())", "b = ask('one')\nprint(b)"),
        cells("c = [ask(x) for x in 'xyz']\nprint(a, b, c, rand(), now())"),
        cells("FINAL(f'{a} {b} {c} {now()} {rand()}')"),
    ],
    "cells that fail or are undone": [
        cells("a = 1\nask('first')\nundo()"),
        cells("a = rand()\n1/0", "print('never')"),
        cells("try:\n    ask('fail')\nexcept RuntimeError as error:\n    b = str(error)\nprint(b)"),
        cells("FINAL((a, b, ask('last')))"),
    ],
    "answers that are refused": [
        "no code at all",
        "FINAL_VAR(missing)",
        cells("x = rand()", "1/0") + "\nFINAL(plan)",
        cells("y = x + rand()"),
        "FINAL_VAR(y)",
    ],
}


async def resumed(
    folder: Path, replies: list[Reply], cut: int, *, keeps_sessions: bool
) -> tuple[Bench, RunRecord]:
    bench = Bench(folder, replies)
    record = bench.new_run()
    assert not await bench.drive(record, cut=cut)
    assert len(bench.events(record)) == cut
    if not keeps_sessions:
        bench.sandbox.sessions.clear()
    record = bench.again(record)
    assert await bench.drive(record)
    return bench, record


@pytest.mark.parametrize("keeps_sessions", [True, False], ids=["session kept", "session lost"])
@pytest.mark.parametrize("script", list(SCRIPTS))
async def test_a_run_that_died_after_any_event_ends_as_if_it_had_not(
    tmp_path: Path, script: str, keeps_sessions: bool
) -> None:
    """Each commit is a place to die at. What a user sees must not depend on it."""
    replies = SCRIPTS[script]
    first, whole = await undisturbed(tmp_path, replies)
    expected = told(first.events(whole), whole.run_id)
    assert whole.progress.state == Run.STATE_ANSWERED

    for cut in range(1, len(expected)):
        bench, record = await resumed(tmp_path, replies, cut, keeps_sessions=keeps_sessions)

        assert told(bench.events(record), record.run_id) == expected, f"cut after {cut}"
        assert record.progress.answer == whole.progress.answer
        assert len(bench.sandbox.natures) == 1
        assert len(bench.model.paid) == len(set(bench.model.paid)) == len(first.model.paid)
        assert bench.sandbox.sessions == {}, "a session was left behind"


async def test_a_session_that_is_lost_is_rebuilt_without_a_trace(tmp_path: Path) -> None:
    """Each cell loses its session once: the log, the answer and what was paid are the same."""
    replies = SCRIPTS["variables, time and randomness"]
    first, whole = await undisturbed(tmp_path, replies)
    bench = Bench(tmp_path, replies)
    record = bench.new_run()
    bench.sandbox.losses_by_code = 1

    assert await bench.drive(record)

    assert told(bench.events(record), record.run_id) == told(first.events(whole), whole.run_id)
    assert bench.model.paid == first.model.paid
    assert record.progress.usage == whole.progress.usage
    assert len(bench.sandbox.natures) == 1


async def test_a_sub_call_that_failed_is_not_made_again_with_its_cell(tmp_path: Path) -> None:
    """It may be answered then, and paid: the log, which has its failure, would not tell of it."""
    code = "ask('one')\ntry:\n    ask('fail')\nexcept RuntimeError:\n    pass\nlose_once()"
    bench = Bench(tmp_path, [cells("ask('zero')"), cells(code), DONE])
    record = bench.new_run()

    assert await bench.drive(record)

    assert bench.sandbox.known_failures == [[], [], [], [2]]


async def test_what_an_unheard_answer_took_is_in_the_usage(tmp_path: Path) -> None:
    """The ledger knows more of a call than its last answer, where it was begun more than once."""
    bench = Bench(tmp_path, [cells("a = 1"), DONE])
    record = bench.new_run()
    generate = bench.model.generate

    async def begun_before(call: ModelCall) -> Generation:
        answer = await generate(call)
        if call.turn == 1:
            answer.recorded_usage.CopyFrom(answer.usage)
            answer.recorded_usage.cost_usd_nanos += 500
        return answer

    bench.model.generate = begun_before  # type: ignore[method-assign]
    assert await bench.drive(record)

    assert record.progress.usage.cost_usd_nanos == 2 * COST_NANOS + 500
    replies = [e.model_replied for e in bench.events(record) if e.HasField("model_replied")]
    assert [each.usage.cost_usd_nanos for each in replies] == [COST_NANOS + 500, COST_NANOS]


async def test_a_lost_session_comes_back_from_its_newest_checkpoint(tmp_path: Path) -> None:
    """What took long before it need not be computed again."""
    replies: list[Reply] = [
        cells("a = rand()"),
        cells("b = rand()"),
        cells("print(a, b, now(), rand())\nlose_once()"),
        cells("FINAL((a, b, rand()))"),
    ]
    bench = Bench(tmp_path, replies, checkpoint_after_s=0)
    record = bench.new_run()

    assert await bench.drive(record)

    stored = [e.checkpoint_stored for e in bench.events(record) if e.HasField("checkpoint_stored")]
    assert [(each.turn, each.cell) for each in stored] == [(1, 1), (2, 1), (3, 1)]
    assert list(record.progress.checkpoint_turns) == [1, 2, 3]
    assert bench.sandbox.executed.count("a = rand()\n") == 1
    plain, whole = await undisturbed(tmp_path, replies)
    assert record.progress.answer == whole.progress.answer
    assert plain.sandbox.executed.count("a = rand()\n") == 2


async def test_a_checkpoint_that_is_gone_is_done_without(tmp_path: Path) -> None:
    """A checkpoint is a shorter way, and never the only one."""
    replies: list[Reply] = [cells("a = rand()"), cells("lose_once()"), cells("FINAL(a)")]
    bench = Bench(tmp_path, replies, checkpoint_after_s=0)
    bench.sandbox.forgets_checkpoints = True
    record = bench.new_run()

    assert await bench.drive(record)

    _, whole = await undisturbed(tmp_path, replies)
    assert record.progress.answer == whole.progress.answer


async def test_code_that_does_not_do_the_same_again_is_told(tmp_path: Path) -> None:
    """A rebuilt session that differs from the lost one may explain what follows."""
    bench = Bench(tmp_path, [cells("print(unsteady())"), cells("lose_once()"), DONE])
    record = bench.new_run()

    assert await bench.drive(record)

    notices = [e for e in bench.events(record) if e.HasField("notice")]
    assert [(e.turn, e.cell, e.notice.kind) for e in notices] == [(1, 1, "REPLAY_DIFFERS")]


async def test_a_failed_call_of_the_model_is_in_the_log_with_what_it_took(tmp_path: Path) -> None:
    """The usage of the log is the run's usage, whatever fails."""
    billed = {"input_tokens": "30", "output_tokens": "3", "cost_usd_nanos": "500"}
    reason = ErrorReason.ERROR_REASON_PROVIDER_BROKEN_REPLY
    bench = Bench(
        tmp_path, [cells("a = 1"), ScriptedError(grpc.StatusCode.UNAVAILABLE, reason, **billed)]
    )
    record = bench.new_run()

    assert await bench.drive(record)

    assert record.progress.state == Run.STATE_FAILED
    failed = [e.model_call_failed for e in bench.events(record) if e.HasField("model_call_failed")]
    assert [each.usage.input_tokens for each in failed] == [30]
    assert failed[0].run_usage == record.progress.usage
    assert record.progress.usage.cost_usd_nanos == COST_NANOS + 500


async def test_the_deadline_of_a_run_outlives_the_process_that_drives_it(tmp_path: Path) -> None:
    """Time runs from the run's start, and not from the start of whoever goes on with it."""
    bench = Bench(tmp_path, [cells("print('found')"), cells("b = 2"), DONE])
    record = bench.new_run(time_max_s=60)
    assert not await bench.drive(record, cut=6)
    record = bench.again(record)
    record.progress.start_time.seconds -= 3_600

    assert await bench.drive(record)

    assert record.progress.state == Run.STATE_PARTIAL
    assert record.progress.answer.limit_reached == "time_max"
    assert len([e for e in bench.events(record) if e.HasField("limit_reached")]) == 1


async def test_a_run_goes_through_what_it_has_done_also_when_its_time_is_over(
    tmp_path: Path,
) -> None:
    """A limit that the log does not know cannot end a turn that the log has gone beyond."""
    replies: list[Reply] = [cells("a = 1"), cells("b = 2"), cells("c = 3"), DONE]
    bench = Bench(tmp_path, replies)
    record = bench.new_run(time_max_s=60)
    assert not await bench.drive(record, cut=14)
    before = told(bench.events(record), record.run_id)
    record = bench.again(record)
    record.progress.start_time.seconds -= 3_600

    assert await bench.drive(record)

    assert told(bench.events(record), record.run_id)[:14] == before
    limits = [e for e in bench.events(record) if e.HasField("limit_reached")]
    assert [e.turn for e in limits] == [3]


async def test_a_process_that_learns_late_of_a_runs_end_leaves_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stood still has opened a session that whoever ended the run knew nothing of."""
    bench = Bench(tmp_path, [cells("a = 1"), DONE])
    record = bench.new_run()

    async def has_ended(_run_id: str) -> bool:
        return True

    monkeypatch.setattr(bench.log, "has_ended", has_ended)
    assert not await bench.drive(record, cut=6)

    assert bench.sandbox.sessions == {}


async def test_a_run_that_is_cancelled_after_its_process_died_leaves_no_session(
    tmp_path: Path,
) -> None:
    """Nobody opens a session then, and the one that there is would wait for half an hour."""
    bench = Bench(tmp_path, [cells("a = 1"), DONE])
    record = bench.new_run()
    assert not await bench.drive(record, cut=6)
    assert bench.sandbox.sessions
    record = bench.again(record)

    assert await bench.drive(record, is_cancelled=True)

    assert record.progress.state == Run.STATE_CANCELLED
    assert bench.sandbox.sessions == {}


async def test_a_conversation_whose_session_is_gone_goes_on_with_an_empty_one(
    tmp_path: Path,
) -> None:
    """Waiting for a checkpoint that is deleted would take all of the run's time."""

    class Past:
        async def before(self, *_: object) -> Earlier:
            return Earlier(
                exchanges=[],
                session=KeptSession(checkpoint_key="checkpoints/gone", executions=3, variables=[]),
            )

    bench = Bench(tmp_path, [cells("print(old)"), cells("b = 2"), cells("FINAL(b)")])
    bench.sandbox.forgets_checkpoints = True
    bench.recall = Past()
    record = bench.new_run()
    record.head.spec.conversation = "conversations/c"

    assert await bench.drive(record)

    endings = [e.cell_finished.ending for e in bench.events(record) if e.HasField("cell_finished")]
    assert endings == ["SESSION_LOST", "COMPLETED", "COMPLETED"]
    assert record.progress.answer.text == "2"


async def test_a_run_has_no_terminal_state_before_the_event_of_its_end(tmp_path: Path) -> None:
    """What is stored then would be a run that nobody drives on and whose watchers see no end; and
    where its end cannot be told, the queue must see that it has none."""
    states: list[Run.State.ValueType] = []

    class Away:
        async def lineage(self, record: RunRecord) -> None:
            del record

        async def close(self, run_id: str) -> None:
            del run_id
            states.append(record.progress.state)
            raise DatabaseAwayError

    bench = Bench(tmp_path, [DONE])
    bench.children = Away()
    record = bench.new_run()
    record.head.spec.limits.depth_max = 1

    with pytest.raises(DatabaseAwayError):
        await bench.drive(record)

    assert states == [Run.STATE_RUNNING]
    assert record.progress.state not in TERMINAL_STATES


async def test_a_call_that_another_version_made_differently_is_made_anew(tmp_path: Path) -> None:
    """An update changes prompts while a run's call is under way; the run is not to fail of it."""

    bench = Bench(tmp_path, [cells("a = 1"), cells("FINAL(a)")])
    known, plain = {"0a/2/0/0"}, bench.model.generate

    async def generate(call: ModelCall) -> Generation:
        if call.request_id in known:
            reason = ErrorReason.ERROR_REASON_REQUEST_ID_REUSED
            raise failure(grpc.StatusCode.INVALID_ARGUMENT, reason)
        return await plain(call)

    bench.model.generate = generate  # type: ignore[method-assign]
    record = bench.new_run()

    assert await bench.drive(record)

    assert record.progress.answer.text == "1"
    assert [paid.rpartition("/")[0] for paid in bench.model.paid] == ["0a/1/0", "0a/2/0/0"]


async def test_a_turn_that_was_asked_is_asked_the_same_whatever_window_is_known_now(
    tmp_path: Path,
) -> None:
    """The gateway has the call under its request id: with a shorter conversation it is another."""
    bench = Bench(tmp_path, ["long " * 40_000 + cells("a = 1"), cells("FINAL(a)")])
    record = bench.new_run()
    assert not await bench.drive(record, cut=7)
    assert bench.events(record)[-1].HasField("turn_started")

    async def facts(*_: object, **__: object) -> tuple[TierFacts, TierFacts]:
        return TierFacts(100_000, 0, 0), TierFacts(0, 0, 0)

    async def count(*_: object, **__: object) -> int:
        return 90_000

    bench.catalog.facts = facts  # type: ignore[method-assign]
    bench.model.count_tokens = count  # type: ignore[method-assign]
    record = bench.again(record)

    assert await bench.drive(record)

    assert record.progress.answer.text == "1"
    assert bench.model.paid == ["0a/1/0/0", "0a/2/0/0"]
