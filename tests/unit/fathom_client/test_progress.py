"""Events become figures, and figures one line."""

from __future__ import annotations

from typing import Any

from fathom.gateway.v1 import generation_pb2
from fathom.orchestrator.v1 import run_event_pb2, run_pb2
from fathom_client.command.child_lines import child_line
from fathom_client.command.progress_line import progress_line
from fathom_client.run_progress import RunProgress

STARTED_S = 1_000


def event(turn: int = 0, **case: Any) -> run_event_pb2.RunEvent:
    return run_event_pb2.RunEvent(turn=turn, **case)


def usage(tokens: int, nanos: int) -> generation_pb2.Usage:
    return generation_pb2.Usage(input_tokens=tokens, cost_usd_nanos=nanos)


def running() -> run_pb2.Run:
    limits = run_pb2.Limits(turns_max=20, cost_usd_nanos_max=5_000_000_000)
    run = run_pb2.Run(spec=run_pb2.RunSpec(limits=limits), state=run_pb2.Run.STATE_RUNNING)
    run.start_time.FromSeconds(STARTED_S)
    return run


def started(*numbers: int) -> list[run_event_pb2.RunEvent]:
    return [
        event(1, sub_call_started=run_event_pb2.SubCallStarted(sub_call=number))
        for number in numbers
    ]


def finished(number: int) -> run_event_pb2.RunEvent:
    call = run_event_pb2.SubCallFinished(sub_call=number, usage=usage(500, 70_000_000))
    return event(1, sub_call_finished=call)


def progress_of(*events: run_event_pb2.RunEvent) -> RunProgress:
    progress = RunProgress()
    for each in events:
        progress.apply(each)
    return progress


def test_the_line_shows_turns_calls_tokens_cost_and_time() -> None:
    replied = run_event_pb2.ModelReplied(run_usage=usage(1_000, 100_000_000))
    progress = progress_of(
        event(run_changed=running()),
        event(1, turn_started=run_event_pb2.TurnStarted()),
        event(1, model_replied=replied),
        *started(1, 2, 3),
        finished(1),
    )

    line = progress_line(progress, STARTED_S + 42)

    assert line == "turn 1/20 · 3 calls (2 live) · 1.5k tok · $0.17/$5 · 0:42"


def test_a_queued_run_is_said_to_wait() -> None:
    run = run_pb2.Run(state=run_pb2.Run.STATE_QUEUED)

    assert progress_line(progress_of(event(run_changed=run)), STARTED_S) == "waiting to start"


def child(name: str, state: run_pb2.Run.State.ValueType, nanos: int = 0) -> run_event_pb2.RunEvent:
    run = run_pb2.Run(name=name, state=state, sub_calls=2)
    run.answer.text = "The first\nof two lines"
    changed = run_event_pb2.ChildRunChanged(run=run, child=1, run_usage=usage(100, nanos))
    return event(1, child_run_changed=changed)


def test_child_runs_are_counted_with_what_they_spend() -> None:
    """Without them a run that waits for its children seems to stand still."""
    progress = progress_of(
        event(run_changed=running()),
        child("runs/a", run_pb2.Run.STATE_QUEUED),
        child("runs/b", run_pb2.Run.STATE_QUEUED),
        child("runs/a", run_pb2.Run.STATE_ANSWERED, nanos=50_000_000),
    )

    line = progress_line(progress, STARTED_S)

    assert line == "turn 0/20 · 0 calls · 2 children (1 live) · 100 tok · $0.05/$5 · 0:00"


def test_a_child_that_ended_is_told_in_one_line() -> None:
    ended = child("runs/a", run_pb2.Run.STATE_ANSWERED).child_run_changed
    ended.run.usage.cost_usd_nanos = 30_000_000

    line = child_line(ended)

    assert line == "child 1 runs/a · answered · 2 calls · $0.03 · “The first of two lines”"


def test_a_child_that_could_not_be_started_is_told_with_the_reason() -> None:
    run = run_pb2.Run(state=run_pb2.Run.STATE_FAILED)
    run.error.message = "too deep"

    line = child_line(run_event_pb2.ChildRunChanged(run=run, child=3))

    assert line == "child 3 was not started: too deep"


def test_a_total_that_was_written_earlier_does_not_take_spend_back() -> None:
    """The run's own total may be older than the sub-calls that were told of since."""
    late = running()
    late.usage.CopyFrom(usage(400, 10_000_000))

    progress = progress_of(
        event(run_changed=running()), *started(1), finished(1), event(run_changed=late)
    )

    assert progress.tokens == 500
    assert progress.cost_usd_nanos == 70_000_000


def test_a_total_counts_what_was_told_before_once() -> None:
    replied = run_event_pb2.ModelReplied(run_usage=usage(1_500, 170_000_000))

    progress = progress_of(*started(1), finished(1), event(2, model_replied=replied))

    assert progress.tokens == 1_500
    assert progress.cost_usd_nanos == 170_000_000


def test_a_cell_that_ended_has_no_calls_under_way() -> None:
    """A cell that is cut off leaves its last calls without an end."""
    progress = progress_of(
        *started(1, 2), event(1, cell_finished=run_event_pb2.CellFinished(ending="TIMED_OUT"))
    )

    assert progress.sub_calls_live == 0


def test_the_clock_stops_at_the_end() -> None:
    run = running()
    run.state = run_pb2.Run.STATE_ANSWERED
    run.end_time.FromSeconds(STARTED_S + 30)

    assert progress_of(event(run_changed=run)).elapsed_s(STARTED_S + 900) == 30


def test_a_limit_of_money_that_nobody_set_is_not_shown() -> None:
    run = running()
    run.spec.limits.ClearField("cost_usd_nanos_max")

    line = progress_line(progress_of(event(run_changed=run)), STARTED_S)

    assert line == "turn 0/20 · 0 calls · 0 tok · $0.00 · 0:00"


def test_the_request_for_a_last_answer_is_no_turn() -> None:
    """At the limit of turns, the line would read `turn 2/1`."""
    last = run_event_pb2.TurnStarted(last_answer=True)

    progress = progress_of(
        event(1, turn_started=run_event_pb2.TurnStarted()), event(2, turn_started=last)
    )

    assert progress.turns == 1


def test_an_event_of_an_unknown_kind_changes_nothing() -> None:
    """A newer server may send events that this client does not know."""
    unknown = run_event_pb2.RunEvent(sequence=7, turn=3)

    progress = progress_of(unknown)

    assert (progress.sequence, progress.turns, progress.tokens) == (7, 0, 0)
