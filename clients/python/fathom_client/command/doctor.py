"""`fathom doctor`: what stands in the way of a question, with a remedy for each thing."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from fathom_client.command import exit_codes, options
from fathom_client.command.checks import findings
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.terminal import Terminal

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@options.as_json
@options.server
def doctor(as_json: bool, server: str | None) -> None:
    """Check this machine and the service. Exits with 1 where something fails."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        found = await findings(
            invocation.home,
            invocation.environ,
            invocation.server,
            access=invocation.access,
            fathom=invocation.fathom,
        )
        is_well = all(finding.level != "fail" for finding in found)
        if as_json:
            print_json({"ok": is_well, "checks": [asdict(finding) for finding in found]})
        else:
            terminal = Terminal(invocation.environ, stream=sys.stdout)
            for finding in found:
                level = terminal.style(finding.level.ljust(4), _COLOURS[finding.level])
                terminal.say(f"{level}  {finding.name.ljust(12)}  {finding.detail}")
                if finding.remedy:
                    terminal.say(f"{' ' * 20}→ {finding.remedy}")
        return exit_codes.ANSWERED if is_well else exit_codes.FAILED

    invoke(main, as_json=as_json, server=server)
