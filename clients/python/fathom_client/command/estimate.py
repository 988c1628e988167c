"""`fathom estimate`: what a question over files would take. Nothing is uploaded or spent."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf import json_format

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.forecast import forecast_line
from fathom_client.command.interrupts import Interrupts, aside
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.request import read_request, trust_line
from fathom_client.command.server_choice import server_to_ask
from fathom_client.command.settling import settled
from fathom_client.command.terminal import echo

_NOT_ASKED = {"as_events": False, "detach": False, "schema": "", "confidence": None}
"""What `ask` has besides, and an estimate does not depend on."""


@click.command()
@click.argument("arguments", nargs=-1, metavar="QUESTION [PATH|DIR|GLOB|ARCHIVE|-]...")
@click.option("--question", "named_question", metavar="TEXT", help="The question, named outright.")
@click.option("-f", "--file", "files", multiple=True, metavar="PATH", help="More data; repeatable.")
@click.option("--paths-from", metavar="FILE|-", help="File of further paths, one a line.")
@click.option("--context", metavar="NAME", help="Stored data, in place of files: `contexts list`.")
@click.option("--json-input", is_flag=True, help="Take the one file as a JSON value, not as text.")
@options.limits
@click.option("--root-model", default="", metavar="TIER", help="Tier or model that leads.")
@click.option("--sub-model", default="", metavar="TIER", help="Tier or model for sub-calls.")
@click.option("--profile", default="", metavar="NAME", help="Kind of work: `fathom profiles list`.")
@options.as_json
@options.server
def estimate(as_json: bool, server: str | None, **chosen: Any) -> None:
    """Predict the calls, tokens, money and time of a question over files.

    The ranges hold nine times in ten, by the record of the runs that the server has finished.
    """

    async def main(invocation: Invocation, _interrupts: Interrupts) -> int:
        asked = await aside(lambda: read_request(chosen | _NOT_ASKED))
        if not asked.profile:
            invocation.terminal.say(trust_line(asked.inputs, asked.limits))
        async with (
            server_to_ask(invocation) as chosen_server,
            Client(chosen_server.address, access=invocation.access) as client,
        ):
            _, found = await settled(client, invocation, asked)
        if as_json:
            print_json(json_format.MessageToDict(found, preserving_proto_field_name=True))
        else:
            echo(forecast_line(found))
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)
