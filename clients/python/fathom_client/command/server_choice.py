"""Which orchestrator a verb talks to: one that is named, one of `fathom up`, or one of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fathom.orchestrator.v1 import run_pb2

from fathom_client.client import Client
from fathom_client.command.failures import NoLastingServerError, NoServerError
from fathom_client.command.guest import prepare_guest
from fathom_client.command.invocation import Invocation
from fathom_client.command.terminal import plain
from fathom_client.errors import CallError
from fathom_client.figures import plural
from fathom_client.local_stack import StackOptions, local_stack, reading_stack
from fathom_client.model_settings import has_provider, settings_of

_UNFINISHED = (run_pb2.Run.STATE_QUEUED, run_pb2.Run.STATE_RUNNING)
_COUNTED_MAX = 500
_NAMED_MAX = 5


@dataclass(frozen=True)
class ChosenServer:
    """An orchestrator to talk to."""

    address: str
    """Where it listens, `host:port`."""
    is_private: bool = False
    """True where it ends with this command."""


@contextlib.asynccontextmanager
async def server_to_ask(
    invocation: Invocation, *, lasting: bool = False
) -> AsyncIterator[ChosenServer]:
    """Give an orchestrator that can start runs; without one, start private services.

    Raises NoServerError where there is none and no key to start one with, and
    NoLastingServerError where `lasting` asks for one that outlives this command.
    """
    running = invocation.home.running()
    if invocation.server is not None:
        yield ChosenServer(invocation.server)
    elif running is not None and running.shared:
        if running.scripted:
            invocation.terminal.say(SCRIPTED_NOTICE)
        yield ChosenServer(running.address)
    elif lasting:
        raise NoLastingServerError("--detach needs services that stay, and none are running here")
    elif not has_provider(invocation.environ):
        raise NoServerError("no service is running here and no OPENAI_API_KEY is set")
    else:
        models = settings_of(invocation.environ)
        await prepare_guest(invocation.terminal)
        options = StackOptions(
            home=invocation.home,
            environ=invocation.environ,
            models=models,
            on_step=lambda name: invocation.terminal.live(f"starting the {name}"),
        )
        async with local_stack(options) as stack:
            invocation.terminal.end_live()
            invocation.terminal.note(f"services of this command's own; models: {models.describe}")
            await say_what_goes_on(invocation, stack.address)
            yield ChosenServer(stack.address, is_private=True)


@contextlib.asynccontextmanager
async def server_to_read(invocation: Invocation) -> AsyncIterator[ChosenServer]:
    """Give an orchestrator that can look runs up; it may be one started just for that.

    Raises HomeInUseError where another command starts or ends services at this moment.
    """
    running = invocation.home.running()
    if invocation.server is not None:
        yield ChosenServer(invocation.server)
    elif running is not None:
        yield ChosenServer(running.address)
    else:
        options = StackOptions(home=invocation.home, environ=invocation.environ)
        async with reading_stack(options) as stack:
            yield ChosenServer(stack.address, is_private=True)


async def say_what_goes_on(invocation: Invocation, address: str) -> None:
    """Say of runs that services which have just been started go on with, since they cost money.

    Who starts services need not be one who may ask them: no key, or no certificate, is no failure.
    """
    try:
        async with Client(address, access=invocation.access) as client:
            found = await client.list_runs(count_max=_COUNTED_MAX, states=_UNFINISHED)
    except CallError as error:
        invocation.terminal.note(f"unfinished runs were not looked up: {plain(str(error))}")
        return
    if found:
        runs = plural(len(found), "unfinished run")
        invocation.terminal.say(f"{runs} {'goes' if len(found) == 1 else 'go'} on:")
        for run in found[:_NAMED_MAX]:
            invocation.terminal.say(f"  {run.name}  {plain(run.spec.question)[:60]}")


SCRIPTED_NOTICE = (
    "scripted model: written rules, not a language model; nothing is charged, costs are shown at"
    " example prices"
)
