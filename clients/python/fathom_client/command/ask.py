"""`fathom ask`: a question over files, answered on standard output."""

from __future__ import annotations

from typing import Any

import click

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.answers import show_outcome
from fathom_client.command.following import RunFollower, cancelling_on_interrupt
from fathom_client.command.forecast import forecast_line
from fathom_client.command.interrupts import Interrupts, aside
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.request import Request, read_request, trust_line
from fathom_client.command.server_choice import server_to_ask
from fathom_client.command.settling import settled
from fathom_client.command.terminal import Terminal, echo
from fathom_client.figures import bytes_text
from fathom_client.inputs import Inputs
from fathom_client.uploads import Upload


@click.command()
@click.argument("arguments", nargs=-1, metavar="QUESTION [PATH|DIR|GLOB|ARCHIVE|-]...")
@click.option("--question", "named_question", metavar="TEXT", help="The question, named outright.")
@click.option("-f", "--file", "files", multiple=True, metavar="PATH", help="More data; repeatable.")
@click.option("--paths-from", metavar="FILE|-", help="File of further paths, one a line.")
@click.option("--context", metavar="NAME", help="Stored data, in place of files: `contexts list`.")
@click.option("--json-input", is_flag=True, help="Give the one file as a JSON value, not as text.")
@options.limits
@click.option("--root-model", default="", metavar="TIER", help="Tier or model that leads.")
@click.option("--sub-model", default="", metavar="TIER", help="Tier or model for sub-calls.")
@click.option("--schema", default="", metavar="FIELDS|FILE", help="'name, age int' or JSON Schema.")
@click.option(
    "--confidence", type=click.FloatRange(0, 1), help="How sure the model must be to end early."
)
@click.option("--profile", default="", metavar="NAME", help="Kind of work: `fathom profiles list`.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent and what it may take; stop.")
@click.option("--detach", is_flag=True, help="Print the run's name and return at once.")
@options.as_json
@options.as_events
@options.quiet
@options.verbose
@options.server
def ask(**chosen: Any) -> None:
    """Ask a question over files, directories, archives or standard input.

    Existing paths are data; the remaining argument is the question. Directories honour
    .gitignore. A profile's own limits go before the defaults below. The answer goes to stdout,
    everything else to stderr.

    Exit status: 0 answered, 1 failed, 2 usage, 3 partial (a limit was hit), 4 not authorised,
    5 service unreachable, 130 interrupted.
    """
    quiet, verbose = chosen.pop("quiet"), chosen.pop("verbose")
    as_json, server = chosen.pop("as_json"), chosen.pop("server")
    dry_run = chosen.pop("dry_run")
    if as_json and chosen["as_events"]:
        raise click.UsageError("--json and --events exclude each other")

    async def main(invocation: Invocation, interrupts: Interrupts) -> int:
        request = await aside(lambda: read_request(chosen))
        if not request.profile:
            invocation.terminal.say(trust_line(request.inputs, request.limits))
        _note_skipped(invocation.terminal, request.inputs)
        if dry_run:
            await _say_estimate(invocation, request)
            return exit_codes.ANSWERED
        async with (
            server_to_ask(invocation, lasting=request.detach) as chosen_server,
            Client(chosen_server.address, access=invocation.access) as client,
        ):
            request, _ = await settled(client, invocation, request)
            return await _ask(client, invocation, interrupts, request)

    invoke(main, quiet=quiet, verbose=verbose, as_json=as_json, server=server)


async def upload(client: Client, terminal: Terminal, source: Upload) -> str:
    """Upload with progress and return the context's name."""
    total = bytes_text(source.size_bytes)

    def show(sent_bytes: int) -> None:
        terminal.live(f"uploading {bytes_text(sent_bytes)} of {total}")

    context = await client.upload(source, on_progress=show)
    terminal.end_live()
    if context.malformed_sequences:
        terminal.say(
            f"{context.malformed_sequences:,} malformed UTF-8 sequences are read as U+FFFD"
        )
    terminal.note(
        f"{context.name}: {context.lines:,} lines, about {context.tokens_estimated:,} tokens"
    )
    return context.name


async def _ask(
    client: Client, invocation: Invocation, interrupts: Interrupts, request: Request
) -> int:
    context = request.inputs
    if not isinstance(context, str):
        context = await upload(client, invocation.terminal, context.upload)
    run = await client.create(
        request.question,
        context,
        limits=request.limits,
        root_tier=request.root_tier,
        sub_tier=request.sub_tier,
        answer_schema_json=request.answer_schema_json,
        confidence_min=request.confidence_min,
        profile=request.profile,
    )
    invocation.run = run.name
    if request.detach:
        if invocation.as_json:
            print_json({"run": run.name, "status": "queued"})
        else:
            echo(run.name)
        invocation.terminal.say(f"follow it: {invocation.to_type(f'runs watch {run.name}')}")
        return exit_codes.ANSWERED
    invocation.terminal.note(run.name)
    follower = RunFollower(client, invocation, as_events=request.as_events)
    async with cancelling_on_interrupt(client, invocation, interrupts, run.name):
        followed = await follower.follow(run.name)
    show_outcome(invocation, followed, with_answer=not request.as_events)
    return exit_codes.INTERRUPTED if interrupts.happened else exit_codes.of_run(followed.run.state)


async def _say_estimate(invocation: Invocation, request: Request) -> None:
    """Say what it would take, where there is a server: none is started just for that."""
    running = invocation.home.running()
    address = invocation.server or (running.address if running and running.shared else None)
    if address is None:
        if request.profile:
            line = trust_line(request.inputs, request.limits, profile=request.profile)
            invocation.terminal.say(line)
        return
    async with Client(address, access=invocation.access) as client:
        _, found = await settled(client, invocation, request)
        invocation.terminal.say(forecast_line(found))


def _note_skipped(terminal: Terminal, inputs: Inputs | str) -> None:
    for entry in () if isinstance(inputs, str) else inputs.skipped:
        terminal.note(f"skipped {entry.path} ({entry.why})")
