"""A run's steps as they are read: where it comes from, and what its code called."""

from __future__ import annotations

import io

from fathom.orchestrator.v1 import run_event_pb2, run_pb2
from fathom_client.command.terminal import Terminal
from fathom_client.command.trajectory import trajectory


def told(run: run_pb2.Run, *events: run_event_pb2.RunEvent) -> list[str]:
    return list(trajectory(run, events, Terminal({}, stream=io.StringIO())))


def tool_called(tool: str, *, reason: str = "") -> run_event_pb2.RunEvent:
    event = run_event_pb2.RunEvent()
    event.host_tool_called.tool = tool
    event.host_tool_called.elapsed.FromMilliseconds(20)
    if reason:
        event.host_tool_called.error.code = 5
    else:
        event.host_tool_called.result_head = "{}"
    return event


def test_what_a_run_belongs_to_is_said_first() -> None:
    run = run_pb2.Run(name="runs/b", forked_from="runs/a", forked_after_turn=2)
    run.spec.profile, run.profile_version = "profiles/search", "1+abc"
    run.spec.conversation = "conversations/c"

    lines = told(run)

    assert "profile   profiles/search, version 1+abc" in lines
    assert "part of   conversations/c" in lines
    assert "fork of   runs/a, after turn 2" in lines


def test_host_tools_that_a_cell_called_are_counted_by_name() -> None:
    finished = run_event_pb2.RunEvent(cell=1)
    finished.cell_finished.ending = "COMPLETED"

    lines = told(
        run_pb2.Run(name="runs/a"),
        tool_called("lookup"),
        tool_called("lookup", reason="NOT_FOUND"),
        tool_called("store"),
        finished,
    )

    assert "2 × lookup (host tool) · 1 failed (NOT_FOUND) · median 20 ms, slowest 20 ms" in lines
    assert "1 × store (host tool) · median 20 ms, slowest 20 ms" in lines
