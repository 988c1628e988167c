"""`fathom runs`: list, show, watch and cancel runs; what forks and counts them is beside it."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
from fathom.orchestrator.v1 import run_event_pb2, run_pb2
from google.protobuf import json_format

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.answers import outcome_object, show_outcome, steps_line
from fathom_client.command.failures import RunWaitsError
from fathom_client.command.following import RunFollower
from fathom_client.command.fork import fork
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.quantities import CountType
from fathom_client.command.run_table import run_table
from fathom_client.command.server_choice import server_to_read
from fathom_client.command.terminal import Terminal, echo
from fathom_client.command.trajectory import trajectory
from fathom_client.command.usage import usage
from fathom_client.figures import plural
from fathom_client.results import Result
from fathom_client.watching import TERMINAL_STATES

_STATES = {
    name.removeprefix("STATE_").lower(): value
    for name, value in run_pb2.Run.State.items()
    if value != run_pb2.Run.STATE_UNSPECIFIED
}


@click.group()
def runs() -> None:
    """Look at runs and what they cost, follow them, fork them, stop them."""


runs.add_command(fork)
runs.add_command(usage)


@runs.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(sorted(_STATES)))
@click.option("--count", type=CountType(least=1), default="20", help="At most so many; 20.")
@options.as_json
@options.server
def list_runs(states: tuple[str, ...], count: int, as_json: bool, server: str | None) -> None:
    """List the newest runs."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.list_runs(
                count_max=count, states=[_STATES[state] for state in states]
            )
        if as_json:
            print_json({"runs": [outcome_object(Result(run)) for run in found]})
        else:
            for line in run_table(found, now_s=time.time()):
                echo(line)
        if chosen.is_private:
            _say_what_waits(invocation, found)
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


@runs.command()
@click.argument("run")
@options.as_json
@options.server
def show(run: str, as_json: bool, server: str | None) -> None:
    """Show a run's steps: what the model wrote, ran and saw, and what it cost."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.get(_name(run))
            events = await _events_so_far(client, found)
        if as_json:
            print_json(
                {
                    "run": json_format.MessageToDict(found, preserving_proto_field_name=True),
                    "events": [
                        json_format.MessageToDict(event, preserving_proto_field_name=True)
                        for event in events
                    ],
                }
            )
            return exit_codes.ANSWERED
        for line in trajectory(found, events, Terminal(invocation.environ, stream=sys.stdout)):
            echo(line)
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


@runs.command()
@click.argument("run")
@options.as_json
@options.as_events
@options.quiet
@options.verbose
@options.server
def watch(run: str, as_events: bool, **chosen: Any) -> None:
    """Follow a run to its end and print its answer. Ctrl-C stops watching, not the run."""

    async def main(invocation: Invocation, interrupts: Interrupts) -> int:
        async with (
            server_to_read(invocation) as server,
            Client(server.address, access=invocation.access) as client,
        ):
            found = await client.get(_name(run))
            if server.is_private and found.state not in TERMINAL_STATES:
                raise RunWaitsError(f"{found.name} waits: no services are running here")
            invocation.run, invocation.is_watching = found.name, True
            with interrupts.first_means(lambda: _detach(invocation, interrupts)):
                followed = await RunFollower(client, invocation, as_events=as_events).follow(
                    found.name
                )
        show_outcome(invocation, followed, with_answer=not as_events)
        return exit_codes.of_run(followed.run.state)

    invoke(main, **chosen)


@runs.command()
@click.argument("run")
@options.as_json
@options.server
def cancel(run: str, as_json: bool, server: str | None) -> None:
    """Ask a run to stop. What it has found so far is kept."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.cancel(_name(run))
            had_ended = found.state in TERMINAL_STATES
            if chosen.is_private and not had_ended:
                # Nothing else is there to end it.
                found = (await RunFollower(client, invocation).follow(found.name)).run
        if as_json:
            print_json(outcome_object(Result(found)))
        elif had_ended:
            invocation.terminal.say(f"{found.name} has ended before: {Result(found).status}")
        else:
            state = "has ended" if found.state in TERMINAL_STATES else "will stop"
            invocation.terminal.say(f"{found.name} {state}")
            invocation.terminal.say(steps_line(invocation, found.name))
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


def _say_what_waits(invocation: Invocation, found: list[run_pb2.Run]) -> None:
    """Say what becomes of runs that have not ended where nothing is there to drive them."""
    waiting = sum(run.state not in TERMINAL_STATES for run in found)
    if waiting:
        invocation.terminal.say(
            f"{plural(waiting, 'run')} unfinished, and no services are running here to go on with"
            f" what waits; try: {invocation.fathom} up"
        )


def _detach(invocation: Invocation, interrupts: Interrupts) -> None:
    invocation.terminal.end_live()
    invocation.terminal.say("watching ends, the run goes on")
    interrupts.stop()


def _name(run: str) -> str:
    return run if "/" in run else f"runs/{run}"


async def _events_so_far(client: Client, run: run_pb2.Run) -> list[run_event_pb2.RunEvent]:
    """Return the run's events up to the newest one that `run` tells of."""
    events: list[run_event_pb2.RunEvent] = []
    if run.last_sequence == 0:
        return events
    async for event in client.watch(run.name):
        events.append(event)
        if event.sequence >= run.last_sequence:
            break
    return events
