"""`fathom up`: all services on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import click

from fathom_client.command import exit_codes, options
from fathom_client.command.guest import prepare_guest
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation, invoke
from fathom_client.command.server_choice import SCRIPTED_NOTICE, say_what_goes_on
from fathom_client.command.terminal import Terminal
from fathom_client.local_stack import (
    LocalStack,
    StackOptions,
    check_listen_address,
    has_way_back,
    local_stack,
)
from fathom_client.loopback import is_loopback
from fathom_client.model_settings import settings_of

_NO_WAY_BACK = (
    "child runs and host tools are off: for them the sandbox calls the orchestrator, and"
    " FATHOM_SANDBOX_TLS_CA_FILE names no authority whose certificate it could trust"
)
_WHAT_IS_OPEN = (
    ("nothing is encrypted", ("TLS_CERTIFICATE_FILE",)),
    ("nobody is asked who they are", ("API_KEYS_FILE", "TLS_CLIENT_CA_FILE")),
)
"""What is so unless one of these settings of the orchestrator's is made."""


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:7311",
    metavar="HOST:PORT",
    help="Where the orchestrator listens; default 127.0.0.1:7311. Port 0 takes any free one.",
)
@click.option(
    "--scripted-model",
    is_flag=True,
    help="Without a key: models that follow written rules. They are no language models.",
)
@options.quiet
@options.verbose
def up(listen: str, scripted_model: bool, quiet: bool, verbose: bool) -> None:
    """Run all services on this machine until Ctrl-C; other fathom commands find them.

    A service that ends by itself is started again, and runs go on where they were.
    """

    async def main(invocation: Invocation, interrupts: Interrupts) -> int:
        terminal = invocation.terminal
        models = None if scripted_model else settings_of(invocation.environ)
        if invocation.home.running() is None:
            # Before the guest is prepared, which may take minutes.
            check_listen_address(listen)
        await prepare_guest(terminal)
        stack_options = StackOptions(
            home=invocation.home,
            environ=invocation.environ,
            models=models,
            listen=listen,
            shared=True,
            on_step=lambda name: terminal.live(f"starting the {name}"),
        )
        async with local_stack(stack_options) as stack:
            terminal.end_live()
            terminal.say(SCRIPTED_NOTICE if models is None else f"models: {models.describe}")
            for process in stack.processes:
                terminal.note(f"{process.name}: process {process.pid}, log {process.log}")
            if not is_loopback(listen.rpartition(":")[0]):
                terminal.say(terminal.style(exposure(invocation.environ), "yellow"))
            if not has_way_back(invocation.environ):
                terminal.say(terminal.style(_NO_WAY_BACK, "yellow"))
            terminal.say(f"state and logs: {invocation.home.path}")
            await say_what_goes_on(invocation, stack.address)
            ready = terminal.style("ready", "green")
            ask = f'{invocation.fathom} ask "QUESTION" FILE...'
            terminal.say(f"{ready}; in another terminal: {ask}")
            terminal.say("Ctrl-C ends it; the orchestrator listens at")
            # For programs too: whoever reads this line can connect.
            click.echo(stack.address)
            await _until_interrupted(stack, terminal, interrupts)
            terminal.say("ending")
        return exit_codes.ANSWERED

    invoke(main, quiet=quiet, verbose=verbose)


def exposure(environ: Mapping[str, str]) -> str:
    """Return what it means that other machines reach the services."""
    is_so = [
        words
        for words, settings in _WHAT_IS_OPEN
        if not any(environ.get(f"FATHOM_ORCHESTRATOR_{name}") for name in settings)
    ]
    return "; ".join(
        ["reachable from other machines", *is_so, "every question is paid with your key"]
    )


async def _until_interrupted(stack: LocalStack, terminal: Terminal, interrupts: Interrupts) -> None:
    """Keep the services up until the first interrupt. Raises StackEndedError or ServiceStartError
    where that is of no use."""

    def tell(ended: str) -> None:
        terminal.say(terminal.style(f"{ended}, and is started again; runs go on", "yellow"))

    interrupted = asyncio.Event()
    end = asyncio.create_task(stack.keep_up(tell))
    interrupt = asyncio.create_task(interrupted.wait())
    try:
        with interrupts.first_means(interrupted.set):
            await asyncio.wait({end, interrupt}, return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            await end
    finally:
        end.cancel()
        interrupt.cancel()
