"""Which orchestrator a verb talks to: one that is named, one of `fathom up`, or one of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fathom_client.command.failures import NoLastingServerError, NoServerError
from fathom_client.command.guest import prepare_guest
from fathom_client.command.invocation import Invocation
from fathom_client.local_stack import StackOptions, local_stack, reading_stack
from fathom_client.model_settings import has_provider, settings_of


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


SCRIPTED_NOTICE = (
    "scripted model: written rules, not a language model; nothing is charged, costs are shown at"
    " example prices"
)
