"""`fathom profiles`: which kinds of work the server has words and functions for."""

from __future__ import annotations

import click
from google.protobuf import json_format

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.server_choice import server_to_read
from fathom_client.command.terminal import echo, plain


@click.group()
def profiles() -> None:
    """See the profiles that `fathom ask --profile NAME` takes."""


@profiles.command("list")
@options.as_json
@options.server
def list_(as_json: bool, server: str | None) -> None:
    """List the profiles, each with what it is for."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.profiles.all()
        if as_json:
            shown = [json_format.MessageToDict(p, preserving_proto_field_name=True) for p in found]
            print_json({"profiles": shown})
            return exit_codes.ANSWERED
        names = [profile.name.removeprefix("profiles/") for profile in found]
        width = max(map(len, names), default=0)
        for name, profile in zip(names, found, strict=True):
            echo(f"{name:{width}}  {plain(profile.description)}")
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)
