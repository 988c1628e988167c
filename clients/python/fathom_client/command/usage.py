"""`fathom runs usage`: what a run and all below it took, call by call in the gateway's ledger."""

from __future__ import annotations

import click
from fathom.gateway.v1 import generation_pb2
from fathom.orchestrator.v1 import orchestrator_service_pb2
from google.protobuf import json_format

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.server_choice import server_to_read
from fathom_client.command.table import aligned
from fathom_client.command.terminal import echo, plain
from fathom_client.figures import usd_text

_Asked = orchestrator_service_pb2.GetRunUsageRequest
_GROUPS = {
    "model": _Asked.GROUP_BY_MODEL,
    "tier": _Asked.GROUP_BY_TIER,
    "turn": _Asked.GROUP_BY_TURN,
    "depth": _Asked.GROUP_BY_DEPTH,
    "run": _Asked.GROUP_BY_RUN,
}


@click.command()
@click.argument("run")
@click.option(
    "--by", type=click.Choice(list(_GROUPS)), default="model", help="What to sum up by; model."
)
@options.as_json
@options.server
def usage(run: str, by: str, as_json: bool, server: str | None) -> None:
    """Show what a run and its child runs took, by model or otherwise."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            name = run if "/" in run else f"runs/{run}"
            found = await client.usage(name, group_by=_GROUPS[by])
        if as_json:
            print_json(json_format.MessageToDict(found, preserving_proto_field_name=True))
            return exit_codes.ANSWERED
        heading = (by.upper(), "CALLS", "TOKENS IN", "OUT", "COST")
        groups = [_row(group.key or "-", group.usage) for group in found.groups]
        for line in aligned([heading, *groups, _row("total", found.total)]):
            echo(line)
        if found.incomplete:
            invocation.terminal.say("at least: what some calls took is not known yet")
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


def _row(name: str, took: generation_pb2.Usage) -> tuple[str, ...]:
    return (
        plain(name),
        f"{took.calls:,}",
        f"{took.input_tokens:,}",
        f"{took.output_tokens:,}",
        usd_text(took.cost_usd_nanos),
    )
