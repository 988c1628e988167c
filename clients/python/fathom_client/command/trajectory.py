"""A run's steps as text to read: turns, replies, cells with what the model saw, sub-calls, cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from fathom.gateway.v1 import generation_pb2
from fathom.orchestrator.v1 import run_event_pb2, run_pb2

from fathom_client.command.answers import took_line
from fathom_client.command.child_lines import child_line
from fathom_client.command.limit_words import reached_text
from fathom_client.command.progress_line import SEPARATOR
from fathom_client.command.terminal import Terminal, plain
from fathom_client.errors import from_status
from fathom_client.figures import plural, span_text, usd_text
from fathom_client.results import Result
from fathom_client.watching import TERMINAL_STATES

_RULE_COLUMNS = 88


@dataclass
class _Calls:
    """Calls of one cell that are told in one line: a batch of sub-calls, or those of one tool."""

    function: str = ""
    begun: int = 0
    failed: int = 0
    elapsed_s: list[float] = field(default_factory=list)
    cost_usd_nanos: int = 0
    error: str = ""


def trajectory(
    run: run_pb2.Run, events: Iterable[run_event_pb2.RunEvent], terminal: Terminal
) -> Iterator[str]:
    """Yield the lines that tell of a run; `terminal` gives the colours."""
    style = terminal.style
    result = Result(run)
    yield f"{style(run.name, 'bold')}  {result.status}  {took_line(result)}"
    yield f"question  {plain(run.spec.question)}"
    yield f"context   {run.spec.context}"
    yield from _origin(run)
    sub_calls: dict[int | str, _Calls] = defaultdict(_Calls)
    batches: dict[int, int] = {}
    for event in events:
        match event.WhichOneof("event"):
            case "turn_started":
                yield from _turn_started(event, terminal)
            case "model_replied":
                yield from _model_replied(event.model_replied, terminal)
            case "sub_call_started":
                _begin(event.sub_call_started, sub_calls, batches)
            case "sub_call_finished":
                finished = event.sub_call_finished
                calls = sub_calls[batches.get(finished.sub_call, 0)]
                calls.cost_usd_nanos += finished.usage.cost_usd_nanos
                _count_end(finished, calls)
            case "host_tool_called":
                _count_tool(event.host_tool_called, sub_calls[event.host_tool_called.tool])
            case "cell_finished":
                yield from _cell_finished(event, sub_calls, terminal)
                sub_calls.clear()
            case _:
                yield from _aside(event, terminal)
    yield from _outcome(result, terminal)


def _origin(run: run_pb2.Run) -> Iterator[str]:
    """Yield what a run belongs to and comes from, a line each."""
    if run.spec.profile:
        yield f"profile   {run.spec.profile}, version {run.profile_version}"
    if run.spec.conversation:
        yield f"part of   {run.spec.conversation}"
    if run.parent:
        yield f"child of  {run.parent}"
    if run.forked_from:
        yield f"fork of   {run.forked_from}, after turn {run.forked_after_turn}"


def _aside(event: run_event_pb2.RunEvent, terminal: Terminal) -> Iterator[str]:
    """Yield what is told in one line."""
    match event.WhichOneof("event"):
        case "child_run_changed" if event.child_run_changed.run.state in TERMINAL_STATES:
            yield terminal.style(child_line(event.child_run_changed), "green")
        case "limit_reached":
            yield terminal.style(reached_text(event.limit_reached), "yellow")
        case "notice":
            yield terminal.style(f"{event.notice.kind}: {plain(event.notice.text)}", "yellow")


def _turn_started(event: run_event_pb2.RunEvent, terminal: Terminal) -> Iterator[str]:
    asked = event.turn_started
    title = f"── turn {event.turn} "
    if asked.last_answer:
        title += "(last answer) "
    yield ""
    yield terminal.style(title.ljust(_RULE_COLUMNS, "─"), "cyan")
    text = f"asked with {plural(asked.messages, 'message')}, {asked.characters:,} characters"
    yield terminal.style(text, "dim")


def _model_replied(reply: run_event_pb2.ModelReplied, terminal: Terminal) -> Iterator[str]:
    finish = generation_pb2.Generation.FinishReason.Name(reply.finish_reason)
    facts = [
        reply.model,
        f"{reply.usage.input_tokens:,} tokens in, {reply.usage.output_tokens:,} out",
        usd_text(reply.usage.cost_usd_nanos),
        span_text(reply.elapsed.ToNanoseconds() / 1e9),
    ]
    if reply.finish_reason != generation_pb2.Generation.FINISH_REASON_STOP:
        facts.append(finish.removeprefix("FINISH_REASON_").lower())
    yield terminal.style(SEPARATOR.join(facts), "dim")
    if reply.reasoning:
        yield terminal.style(_barred(reply.reasoning, "· "), "dim")
    yield plain(reply.text.strip()) or "(an empty reply)"


def _cell_finished(
    event: run_event_pb2.RunEvent, sub_calls: dict[int | str, _Calls], terminal: Terminal
) -> Iterator[str]:
    cell = event.cell_finished
    for calls in sub_calls.values():
        yield terminal.style(_calls_row(calls), "green" if not calls.failed else "yellow")
    own_s, wait_s = (time.ToNanoseconds() / 1e9 for time in (cell.own_time, cell.wait_time))
    facts = [f"cell {event.cell}: {cell.ending.lower().replace('_', ' ')}", span_text(own_s)]
    if wait_s:
        facts.append(f"{span_text(wait_s)} waiting")
    if cell.output_key:
        shown, whole = len(cell.output_shown), cell.output_characters
        facts.append(f"the model saw {shown:,} of {whole:,} characters")
    elif not cell.output_shown:
        facts.append("no output")
    yield terminal.style(SEPARATOR.join(facts), "dim" if not cell.error else "yellow")
    if cell.output_shown:
        yield _barred(cell.output_shown, "│ ")
    if cell.error:
        yield terminal.style(_barred(cell.error, "│ "), "red")


def _begin(
    started: run_event_pb2.SubCallStarted,
    sub_calls: dict[int | str, _Calls],
    batches: dict[int, int],
) -> None:
    calls = sub_calls[started.batch]
    calls.begun += 1
    tier = " ".join(started.tier.split())  # code names it, in any words
    calls.function = f"llm_query ({tier})"
    batches[started.sub_call] = started.batch


def _count_tool(called: run_event_pb2.HostToolCalled, calls: _Calls) -> None:
    calls.begun += 1
    calls.function = f"{called.tool} (host tool)"
    _count_end(called, calls)


def _count_end(
    ended: run_event_pb2.SubCallFinished | run_event_pb2.HostToolCalled, calls: _Calls
) -> None:
    calls.elapsed_s.append(ended.elapsed.ToNanoseconds() / 1e9)
    if ended.HasField("error"):
        calls.failed += 1
        error = from_status(ended.error)
        calls.error = error.reason or error.code.name


def _calls_row(calls: _Calls) -> str:
    facts = [f"{calls.begun:,} × {calls.function}"]
    if calls.failed:
        facts.append(f"{calls.failed:,} failed ({calls.error})")
    if calls.elapsed_s:
        middle, most = span_text(median(calls.elapsed_s)), span_text(max(calls.elapsed_s))
        facts.append(f"median {middle}, slowest {most}")
    if calls.cost_usd_nanos:
        facts.append(usd_text(calls.cost_usd_nanos))
    return SEPARATOR.join(facts)


def _outcome(result: Result, terminal: Terminal) -> Iterator[str]:
    yield ""
    if result.text is not None:
        source = run_pb2.Answer.Source.Name(result.run.answer.source).removeprefix("SOURCE_")
        title = f"── {result.status} ({source.lower()}) "
        if result.run.answer.limit_reached:
            title += f"at {result.run.answer.limit_reached} "
        yield terminal.style(title.ljust(_RULE_COLUMNS, "─"), "cyan")
        yield plain(result.text)
    elif result.error is not None:
        yield terminal.style(f"{result.status}: {plain(str(result.error))}", "red")
        if result.error.reason:
            metadata = "".join(f" {key}={value}" for key, value in result.error.metadata.items())
            yield terminal.style(plain(result.error.reason + metadata), "dim")
    else:
        yield f"not ended; follow it: fathom runs watch {result.run.name}"


def _barred(text: str, bar: str) -> str:
    return "\n".join(bar + line for line in plain(text.rstrip("\n")).splitlines())
