"""`fathom demo`: two real questions over a million generated lines, through all three services.

Without a key the models are scripted, and it says so; with one, the provider is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from fathom_demo.corpus import DEFAULT_LINES, DEFAULT_RECORDS, CorpusTruth, write_corpus
from fathom_demo.questions import COUNT_QUESTION, count_is_right, search_is_right, search_question

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.answers import show_answer, show_outcome, steps_line, took_line
from fathom_client.command.ask import upload
from fathom_client.command.following import Followed, RunFollower, cancelling_on_interrupt
from fathom_client.command.guest import prepare_guest
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.invocation import Invocation, invoke
from fathom_client.command.progress_line import SEPARATOR
from fathom_client.command.request import trust_line
from fathom_client.command.server_choice import SCRIPTED_NOTICE
from fathom_client.command.terminal import Terminal
from fathom_client.figures import bytes_text, span_text
from fathom_client.inputs import read_inputs
from fathom_client.limits import Limits
from fathom_client.local_stack import StackOptions, local_stack
from fathom_client.model_settings import has_provider, settings_of
from fathom_client.results import Result

_LIMITS = Limits(usd=5, turns=20, time_s=600)
_LABEL_COLUMNS = 12
_INDENT = " " * _LABEL_COLUMNS


@dataclass(frozen=True)
class _Question:
    """A question whose answer is known."""

    text: str
    is_right: Callable[[str, CorpusTruth], bool]
    phase: str


class _Phases:
    """The times of what has been done, and the lines that tell of it."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._times_s: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        self.add(name, time.monotonic() - started_s)

    def add(self, name: str, elapsed_s: float) -> None:
        self._times_s.append((name, elapsed_s))

    def tell(self, label: str, text: str) -> None:
        """Write a labelled line, folded to the terminal's width under itself."""
        self._terminal.end_live()
        lines = textwrap.wrap(text, self._terminal.columns - _LABEL_COLUMNS) or [""]
        head = self._terminal.style(label.ljust(_LABEL_COLUMNS), "bold")
        self._terminal.say("\n".join([head + lines[0], *(_INDENT + line for line in lines[1:])]))

    def last_text(self) -> str:
        return span_text(self._times_s[-1][1])

    def summary(self) -> str:
        return SEPARATOR.join(f"{name} {span_text(elapsed)}" for name, elapsed in self._times_s)


@click.command()
@click.option("--lines", type=click.IntRange(min=5_000), default=DEFAULT_LINES, help="Lines.")
@click.option("--seed", type=int, default=1, help="Another seed, another text and answers.")
@click.option("--install-seconds", type=float, help="Time that installing took, to be shown.")
@options.quiet
@options.verbose
def demo(lines: int, seed: int, install_seconds: float | None, quiet: bool, verbose: bool) -> None:
    """Ask two questions over a million lines. Needs no key; with OPENAI_API_KEY it uses it.

    Exits with 1 where an answer is wrong.
    """

    async def main(invocation: Invocation, interrupts: Interrupts) -> int:
        phases = _Phases(invocation.terminal)
        if install_seconds is not None:
            phases.add("install", install_seconds)
            phases.tell("install", span_text(install_seconds))
        with phases.timed("guest"):
            await prepare_guest(invocation.terminal)
        phases.tell("guest", f"Python for the sandbox is ready ({phases.last_text()})")
        path, truth = await _make_text(invocation, phases, lines, seed)
        async with _started(invocation, phases) as address, Client(address) as client:
            inputs = read_inputs([path], title=f"{lines:,} generated lines")
            phases.tell("sending", trust_line(inputs, _LIMITS))
            with phases.timed("upload"):
                context = await upload(client, invocation.terminal, inputs.upload)
            verdicts = []
            for question in _questions(truth):
                phases.tell("", "")
                phases.tell("question", question.text)
                with phases.timed(question.phase):
                    followed = await _ask(client, invocation, interrupts, question.text, context)
                verdicts.append(_judge(invocation, followed, question, truth))
                if interrupts.happened:
                    return exit_codes.INTERRUPTED
        _say_farewell(invocation, phases)
        return exit_codes.ANSWERED if all(verdicts) else exit_codes.FAILED

    invoke(main, quiet=quiet, verbose=verbose)


def _questions(truth: CorpusTruth) -> tuple[_Question, ...]:
    return (
        _Question(search_question(truth), search_is_right, "search"),
        _Question(COUNT_QUESTION, count_is_right, "count"),
    )


async def _make_text(
    invocation: Invocation, phases: _Phases, lines: int, seed: int
) -> tuple[Path, CorpusTruth]:
    """Return the text of a seed and what is known of it, writing it where it is not kept."""
    folder = invocation.home.demo
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{lines}-lines-{seed}.txt"
    record = path.with_suffix(".json")
    truth, origin = _kept_truth(path, record), "kept from before"
    if truth is None:
        invocation.terminal.live(f"writing {lines:,} lines of logs, mails and notes")
        records = min(DEFAULT_RECORDS, lines // 10)
        with phases.timed("text"):
            truth = await asyncio.to_thread(write_corpus, path, seed, lines=lines, records=records)
        record.write_text(json.dumps(asdict(truth)))
        origin = f"written in {phases.last_text()}"
    phases.tell("text", f"{lines:,} lines, {bytes_text(truth.size_bytes)}, {origin}: {path}")
    return path, truth


def _kept_truth(path: Path, record: Path) -> CorpusTruth | None:
    """Return what is known of a text that is kept whole, None where there is none."""
    try:
        truth = CorpusTruth(**json.loads(record.read_text()))
        return truth if path.stat().st_size == truth.size_bytes else None
    except (OSError, ValueError, TypeError):
        # Not there, or described by another version.
        return None


@contextlib.asynccontextmanager
async def _started(invocation: Invocation, phases: _Phases) -> AsyncIterator[str]:
    """Run the services inside the block and give the orchestrator's address."""
    terminal = invocation.terminal
    models = settings_of(invocation.environ) if has_provider(invocation.environ) else None
    stack_options = StackOptions(
        home=invocation.home,
        environ=invocation.environ,
        models=models,
        on_step=lambda name: terminal.live(f"starting the {name}"),
    )
    async with contextlib.AsyncExitStack() as exits:
        with phases.timed("services"):
            stack = await exits.enter_async_context(local_stack(stack_options))
        names = ", ".join(f"{process.name} ({process.pid})" for process in stack.processes)
        phases.tell("services", f"{names} ({phases.last_text()})")
        phases.tell("models", SCRIPTED_NOTICE if models is None else models.describe)
        yield stack.address


async def _ask(
    client: Client, invocation: Invocation, interrupts: Interrupts, question: str, context: str
) -> Followed:
    run = await client.create(question, context, limits=_LIMITS)
    invocation.run = run.name
    async with cancelling_on_interrupt(client, invocation, interrupts, run.name):
        return await RunFollower(client, invocation).follow(run.name)


def _judge(
    invocation: Invocation, followed: Followed, question: _Question, truth: CorpusTruth
) -> bool:
    """Show a run's answer and tell whether it is right."""
    terminal, result = invocation.terminal, Result(followed.run)
    if result.error is not None:
        show_outcome(invocation, followed)
        return False
    is_right = question.is_right(result.text or "", truth)
    terminal.say(terminal.style("answer", "bold"))
    show_answer(result.text)
    verdict = terminal.style("right", "green") if is_right else terminal.style("WRONG", "red")
    if result.status == "partial":
        verdict += f", partial at {followed.run.answer.limit_reached}"
    terminal.say(f"{verdict}{SEPARATOR}{took_line(result)}")
    terminal.say(steps_line(invocation, followed.run.name))
    return is_right


def _say_farewell(invocation: Invocation, phases: _Phases) -> None:
    fathom = invocation.fathom
    phases.tell("", "")
    phases.tell("times", phases.summary())
    phases.tell("next", f"{fathom} runs list: every run and what it cost")
    phases.tell("", f"{fathom} runs show RUN: each step, what the model wrote, ran and saw")
    if not has_provider(invocation.environ):
        phases.tell("", f'{fathom} ask "QUESTION" FILE...: your own files, with OPENAI_API_KEY set')
