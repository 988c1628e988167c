"""`fathom conversations`: questions that build on one another, over the same files."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click
from fathom.orchestrator.v1 import conversation_service_pb2
from google.protobuf import json_format

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.answers import show_outcome
from fathom_client.command.ask import upload
from fathom_client.command.following import RunFollower, cancelling_on_interrupt
from fathom_client.command.interrupts import Interrupts, aside
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.quantities import CountType
from fathom_client.command.run_table import run_table
from fathom_client.command.server_choice import server_to_ask, server_to_read
from fathom_client.command.terminal import echo
from fathom_client.figures import plural, span_text, usd_text
from fathom_client.inputs import InputError, read_inputs, unicode_text

_RUNS_SHOWN = 20


@click.group()
def conversations() -> None:
    """Ask questions that build on one another: variables of earlier ones are kept."""


@conversations.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH|DIR|GLOB...")
@click.option("--json-input", is_flag=True, help="Give the one file as a JSON value, not as text.")
@options.as_json
@options.server
def start(paths: tuple[str, ...], json_input: bool, as_json: bool, server: str | None) -> None:
    """Open a conversation over files and print its name."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        inputs = await aside(
            lambda: read_inputs(list(paths), read_stdin=_no_stdin, as_json=json_input)
        )
        invocation.terminal.say(inputs.describe())
        async with (
            server_to_ask(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            context = await upload(client, invocation.terminal, inputs.upload)
            made = await client.conversations.create(context)
        if as_json:
            print_json(_object(made))
        else:
            echo(made.name)
        invocation.terminal.say(
            f"ask: {invocation.to_type(f'conversations ask {made.name} QUESTION')}"
        )
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


@conversations.command()
@click.argument("conversation")
@click.argument("question")
@options.limits
@options.as_json
@options.as_events
@options.quiet
@options.verbose
@options.server
def ask(conversation: str, question: str, as_events: bool, **chosen: Any) -> None:
    """Ask the next question of a conversation."""
    limits = options.limits_of(chosen).or_else(options.DEFAULT_LIMITS)

    async def main(invocation: Invocation, interrupts: Interrupts) -> int:
        async with (
            server_to_ask(invocation) as server,
            Client(server.address, access=invocation.access) as client,
        ):
            run = await client.create(
                unicode_text(question), "", limits=limits, conversation=_name(conversation)
            )
            invocation.run = run.name
            follower = RunFollower(client, invocation, as_events=as_events)
            async with cancelling_on_interrupt(client, invocation, interrupts, run.name):
                followed = await follower.follow(run.name)
        show_outcome(invocation, followed, with_answer=not as_events)
        if interrupts.happened:
            return exit_codes.INTERRUPTED
        return exit_codes.of_run(followed.run.state)

    invoke(main, **chosen)


@conversations.command("list")
@click.option("--count", type=CountType(least=1), default="20", help="At most so many; 20.")
@options.as_json
@options.server
def list_conversations(count: int, as_json: bool, server: str | None) -> None:
    """List the newest conversations."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.conversations.newest(count_max=count)
        if as_json:
            print_json({"conversations": [_object(each) for each in found]})
        else:
            for each in found:
                echo(_line(each, now_s=time.time()))
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


@conversations.command()
@click.argument("conversation")
@options.as_json
@options.server
def show(conversation: str, as_json: bool, server: str | None) -> None:
    """Show a conversation and its newest runs, the last one last."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.conversations.get(_name(conversation))
            shown = [] if as_json else found.runs[-_RUNS_SHOWN:]
            runs = await asyncio.gather(*(client.get(name) for name in shown))
        if as_json:
            print_json(_object(found))
            return exit_codes.ANSWERED
        echo(_line(found, now_s=time.time()))
        if len(found.runs) > len(runs):
            echo(f"its newest {len(runs)} runs:")
        for line in run_table(runs, now_s=time.time()) if runs else ():
            echo(line)
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


@conversations.command()
@click.argument("conversation")
@options.server
def delete(conversation: str, server: str | None) -> None:
    """End a conversation. Its runs stay."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            await client.conversations.delete(_name(conversation))
        invocation.terminal.say(f"{_name(conversation)} is deleted")
        return exit_codes.ANSWERED

    invoke(main, server=server)


def _name(conversation: str) -> str:
    return conversation if "/" in conversation else f"conversations/{conversation}"


def _no_stdin() -> bytes:
    raise InputError("a conversation is about files: standard input is not one")


def _object(found: conversation_service_pb2.Conversation) -> dict[str, object]:
    return json_format.MessageToDict(found, preserving_proto_field_name=True)


def _line(found: conversation_service_pb2.Conversation, *, now_s: float) -> str:
    left_s = max(1, round(found.expire_time.ToNanoseconds() / 1e9 - now_s))
    parts = [
        found.name,
        plural(len(found.runs), "run"),
        usd_text(found.usage.cost_usd_nanos),
        f"ends in {span_text(left_s)}",
    ]
    if found.live_run:
        parts.append(f"{found.live_run} is under way")
    return "  ".join(parts)
