"""`fathom runs fork`: go on from a turn of a run with something changed, and follow it."""

from __future__ import annotations

from typing import Any

import click

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.answers import show_outcome
from fathom_client.command.following import RunFollower, cancelling_on_interrupt
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation, invoke
from fathom_client.command.quantities import CountType
from fathom_client.command.server_choice import server_to_ask
from fathom_client.inputs import unicode_text


@click.command()
@click.argument("run")
@click.option(
    "--after-turn", type=CountType(least=1), required=True, help="The last turn that is kept."
)
@click.option("--question", default="", metavar="TEXT", help="Another question.")
@click.option("--root-model", default="", metavar="TIER", help="Another tier or model that leads.")
@click.option("--sub-model", default="", metavar="TIER", help="Another one for sub-calls.")
@options.changed_limits
@options.as_json
@options.as_events
@options.quiet
@options.verbose
@options.server
def fork(run: str, as_events: bool, **chosen: Any) -> None:
    """Go on from a turn of a run, with its variables, and with something changed.

    What is not named stays as it was; the turns that are kept cost nothing again.
    """
    limits = options.limits_of(chosen)
    after_turn, question = chosen.pop("after_turn"), unicode_text(chosen.pop("question"))
    root_tier, sub_tier = chosen.pop("root_model"), chosen.pop("sub_model")

    async def main(invocation: Invocation, interrupts: Interrupts) -> int:
        async with (
            server_to_ask(invocation) as server,
            Client(server.address, access=invocation.access) as client,
        ):
            forked = await client.fork(
                run if "/" in run else f"runs/{run}",
                after_turn=after_turn,
                question=question,
                limits=limits,
                root_tier=root_tier,
                sub_tier=sub_tier,
            )
            invocation.run = forked.name
            invocation.terminal.say(forked.name)
            follower = RunFollower(client, invocation, as_events=as_events)
            async with cancelling_on_interrupt(client, invocation, interrupts, forked.name):
                followed = await follower.follow(forked.name)
        show_outcome(invocation, followed, with_answer=not as_events)
        if interrupts.happened:
            return exit_codes.INTERRUPTED
        return exit_codes.of_run(followed.run.state)

    invoke(main, **chosen)
