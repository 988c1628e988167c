"""Following one run to its end, with progress for people or events for programs.

Shared by the verbs that wait for a run; what an interrupt means is the verb's choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import click
from fathom.orchestrator.v1 import run_event_pb2, run_pb2
from google.protobuf import json_format

from fathom_client.client import Client
from fathom_client.command.child_lines import child_line
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation
from fathom_client.command.limit_words import reached_text
from fathom_client.command.progress_line import progress_line
from fathom_client.command.terminal import Terminal, escaped, plain
from fathom_client.errors import CallError
from fathom_client.run_progress import RunProgress
from fathom_client.watching import TERMINAL_STATES

_REDRAW_S = 1.0


@dataclass(frozen=True)
class Followed:
    """How following ended."""

    run: run_pb2.Run
    """The run as it stands."""
    progress: RunProgress
    """Figures as of the last event."""


class RunFollower:
    """Shows a run's events as they come."""

    def __init__(self, client: Client, invocation: Invocation, *, as_events: bool = False) -> None:
        """Show progress on the terminal, or with `as_events` each event on standard output."""
        self._client = client
        self._invocation = invocation
        self._terminal: Terminal = invocation.terminal
        self._as_events = as_events
        self.progress = RunProgress()
        """Figures as of the newest event."""

    async def follow(self, name: str) -> Followed:
        """Show the run up to its end and return it. Raises CallError where it cannot be seen."""
        async with self._redrawing():
            async for event in self._client.watch(name, on_break=self._tell_break):
                self._show(event)
        self._terminal.end_live()
        return Followed(await self._client.get(name), self.progress)

    def _show(self, event: run_event_pb2.RunEvent) -> None:
        begins = event.turn_started if event.HasField("turn_started") else None
        # A last answer is asked for in the turn that is under way.
        if begins is not None and self.progress.turns and not begins.last_answer:
            self._say_turn_line(event)
        self.progress.apply(event)
        self._invocation.cost_usd_nanos = self.progress.cost_usd_nanos
        if self.progress.ended_at_s is not None and self.progress.turns:
            self._say_turn_line(event)
        if self._as_events:
            click.echo(event_json(event))
        self._note(event)
        self._terminal.live(progress_line(self.progress, time.time()))

    def _tell_break(self) -> None:
        self._terminal.say("the connection broke; trying for half a minute to get it back")

    def _say_turn_line(self, event: run_event_pb2.RunEvent) -> None:
        """Write the figures of a turn that was over with an event, where no line can be redrawn."""
        if not self._terminal.is_live:
            happened_at_s = event.event_time.ToNanoseconds() / 1e9
            self._terminal.say(progress_line(self.progress, happened_at_s))

    def _note(self, event: run_event_pb2.RunEvent) -> None:
        match event.WhichOneof("event"):
            case "notice":
                self._terminal.note(f"{event.notice.kind}: {plain(event.notice.text)}")
            case "child_run_changed":
                changed = event.child_run_changed
                is_begun = changed.run.name and changed.run.state not in TERMINAL_STATES
                (self._terminal.note if is_begun else self._terminal.say)(child_line(changed))
            case "limit_reached":
                self._terminal.say(reached_text(event.limit_reached))
            case "cell_finished" if event.cell_finished.error:
                self._terminal.note(
                    f"turn {event.turn}: {event.cell_finished.ending}:"
                    f" {plain(event.cell_finished.error)}"
                )

    @contextlib.asynccontextmanager
    async def _redrawing(self) -> AsyncIterator[None]:
        """Keep the clock of the live line going inside the block."""
        ticker = asyncio.create_task(self._redraw())
        try:
            yield
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker

    async def _redraw(self) -> None:
        while self._terminal.is_live:
            await asyncio.sleep(_REDRAW_S)
            self._terminal.live(progress_line(self.progress, time.time()))


def event_json(event: run_event_pb2.RunEvent) -> str:
    """Return an event as one line of JSON, with the names of the proto."""
    text = json_format.MessageToJson(
        event, indent=None, preserving_proto_field_name=True, ensure_ascii=False
    )
    return escaped(text)


@contextlib.asynccontextmanager
async def cancelling_on_interrupt(
    client: Client, invocation: Invocation, interrupts: Interrupts, name: str
) -> AsyncIterator[None]:
    """Inside the block, the first interrupt cancels the run, which then ends by itself."""
    requests: set[asyncio.Task[None]] = set()

    async def cancel() -> None:
        try:
            await client.cancel(name)
        except CallError as error:
            invocation.terminal.error(f"the run could not be cancelled: {plain(str(error))}")

    def begin() -> None:
        invocation.terminal.say("cancelling; what is found so far is kept. Ctrl-C again: quit now")
        requests.add(asyncio.create_task(cancel()))

    with interrupts.first_means(begin):
        yield
    await asyncio.gather(*requests)
