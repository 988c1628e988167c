"""Showing how a run ended: the answer on standard output, everything else on standard error."""

from __future__ import annotations

import sys

import click
from fathom.orchestrator.v1 import run_pb2

from fathom_client.command.failures import explain
from fathom_client.command.following import Followed
from fathom_client.command.invocation import Invocation, error_object, print_json
from fathom_client.command.limit_words import option_of
from fathom_client.command.progress_line import SEPARATOR
from fathom_client.command.terminal import plain
from fathom_client.figures import count_text, plural, span_text
from fathom_client.results import Result

_LAST_SAID_CHARACTERS = 600
_CITATIONS_SHOWN = 10
_QUOTE_CHARACTERS = 100
_MARKS = {
    run_pb2.Citation.CHECK_NOT_FOUND: "not in the data",
    run_pb2.Citation.CHECK_NOT_DONE: "not checked",
}


def show_outcome(invocation: Invocation, followed: Followed, *, with_answer: bool = True) -> None:
    """Print the answer, or why there is none, then what it took and where to look next.

    `with_answer` is False where the events on standard output hold it.
    """
    result = Result(followed.run)
    if invocation.as_json:
        print_json(outcome_object(result))
    elif with_answer:
        show_answer(result.found_so_far if result.status == "cancelled" else result.text)
    terminal = invocation.terminal
    for line in citation_lines(followed.run.answer):
        terminal.say(line)
    for error in followed.run.answer.schema_errors:
        terminal.say(terminal.style(f"does not fit the schema: {plain(error)}", "yellow"))
    if result.status == "partial":
        limit = followed.run.answer.limit_reached
        text = f"partial answer: {limit} was reached"
        if option := option_of(limit):
            text += f"; for more, raise {option}"
        terminal.say(terminal.style(text, "yellow"))
    if result.error is not None:
        failure = explain(
            result.error,
            run=followed.run.name,
            fathom=invocation.fathom,
            server=invocation.server_option,
        )
        terminal.error(f"{terminal.style(result.status + ':', 'red')} {plain(failure.cause)}")
        if result.found_so_far:
            if result.status == "cancelled":
                terminal.say("above is what had been found so far, not an answer")
            else:
                terminal.say(f"found so far:\n{_indented(result.found_so_far)}")
        terminal.error(f"cost so far: {result.cost_text}")
        terminal.error(f"try: {failure.attempt}")
    terminal.say(terminal.style(took_line(result), "dim"))
    terminal.say(steps_line(invocation, followed.run.name))


def show_answer(text: str | None) -> None:
    """Print an answer; to a terminal without anything that it would obey."""
    if text:
        click.echo(plain(text) if sys.stdout.isatty() else text)


def citation_lines(answer: run_pb2.Answer) -> list[str]:
    """Return what an answer cites, a line each: whether it stands there, where, and the quote."""
    lines = [_citation_line(citation) for citation in answer.citations[:_CITATIONS_SHOWN]]
    more = len(answer.citations) - len(lines)
    return [*lines, f"and {more} more citations: see --json"] if more > 0 else lines


def took_line(result: Result) -> str:
    """Return what the run took: `$0.31 · 41 s · 3 turns · 212 calls · 1.4M tok`."""
    run = result.run
    return SEPARATOR.join(
        [
            result.cost_text,
            span_text(result.elapsed_s),
            plural(run.turns, "turn"),
            plural(run.sub_calls, "call"),
            f"{count_text(result.tokens)} tok",
        ]
    )


def steps_line(invocation: Invocation, run: str) -> str:
    """Return where a run's steps can be seen."""
    text = f"steps: {invocation.to_type(f'runs show {run}')}"
    return invocation.terminal.style(text, "dim")


def outcome_object(result: Result) -> dict[str, object]:
    """Return a run as `--json` shows it."""
    run, error = result.run, result.error
    return {
        "run": run.name,
        "status": result.status,
        "question": run.spec.question,
        "context": run.spec.context,
        "answer": result.text,
        "answer_is_json": run.answer.is_json,
        "schema_errors": list(run.answer.schema_errors),
        "citations": [_citation_object(citation) for citation in run.answer.citations],
        "limit_reached": run.answer.limit_reached or None,
        "found_so_far": result.found_so_far or None,
        "error": None if error is None else error_object(error),
        "turns": run.turns,
        "sub_calls": run.sub_calls,
        "input_tokens": run.usage.input_tokens,
        "output_tokens": run.usage.output_tokens,
        "cost_usd": result.cost_usd,
        "cost_usd_nanos": run.usage.cost_usd_nanos,
        "usage_incomplete": result.is_usage_incomplete,
        "elapsed_s": round(result.elapsed_s, 3),
    }


def _citation_line(citation: run_pb2.Citation) -> str:
    mark = "verified" if citation.verified else _MARKS.get(citation.check, "not verified")
    name = plain(citation.document).replace("\n", " ")
    place = f"{citation.start}-{citation.end}" if citation.end > citation.start else ""
    where = SEPARATOR.join(part for part in (name, place) if part)
    quote = " ".join(plain(citation.quote).split())
    if len(quote) > _QUOTE_CHARACTERS:
        quote = quote[:_QUOTE_CHARACTERS] + "…"
    return f"{mark}: {where} “{quote}”" if where else f"{mark}: “{quote}”"


def _citation_object(citation: run_pb2.Citation) -> dict[str, object]:
    check = run_pb2.Citation.Check.Name(citation.check).removeprefix("CHECK_").lower()
    return {
        "document": citation.document,
        "start": citation.start,
        "end": citation.end,
        "quote": citation.quote,
        "verified": citation.verified,
        "check": check,
    }


def _indented(text: str) -> str:
    shown = plain(text.strip())
    if len(shown) > _LAST_SAID_CHARACTERS:
        shown = shown[:_LAST_SAID_CHARACTERS] + " …"
    return "\n".join(f"  {line}" for line in shown.splitlines())
