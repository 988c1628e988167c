"""An asyncio event loop without sockets: timers, tasks, and questions to sub-models.

A question waits until no task can go on without an answer; all that wait are then sent
together. `await` at top level, `asyncio.run`, `sleep` and `gather` work; sockets do not.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from . import queries, questions, stepwise
from .questions import Question


class CellLoop(asyncio.BaseEventLoop):
    """The loop of one session; it stays from cell to cell, so a task may outlive its cell."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Idle(self)
        self._questions: list[tuple[Question, asyncio.Future[None]]] = []
        self._waited_s = 0.0

    def time(self) -> float:
        """Return the time that timers go by; it stands still while sub-models are asked.

        Else a timeout would throw away an answer that has come, and is paid.
        """
        return time.monotonic() - self._waited_s

    async def ask(self, question: Question) -> Any:
        """Return what a question gives, asked together with those of other tasks."""
        sent = self.create_future()
        self._questions.append((question, sent))
        await sent
        return question.value()

    def ask_waiting(self) -> bool:
        """Send the questions that wait; returns whether there were any."""
        waiting = [(item, sent) for item, sent in self._questions if not sent.done()]
        self._questions = []
        if not waiting:
            return False
        started = time.monotonic()
        questions.send([item for item, _ in waiting])
        self._waited_s += time.monotonic() - started
        for _, sent in waiting:
            sent.set_result(None)
        return True

    def run_in_executor(  # type: ignore[override]  # it needs no executor
        self, _executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function in a task of its own: there are no threads, whoever would have them."""
        return self.create_task(to_thread(func, *args))

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing but timers and questions ever becomes ready."""

    def _write_to_self(self) -> None:
        """There is no other thread that could need waking."""


class _Idle:
    """Stands where asyncio expects a selector: is called whenever no task is ready."""

    def __init__(self, loop: CellLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Ask what waits to be asked, else sleep until the next timer is due."""
        if timeout is not None and timeout <= 0:
            return []
        if self._loop.ask_waiting():
            return []
        if timeout is None:
            raise RuntimeError("every task waits for something that can never happen")
        time.sleep(timeout)
        return []

    def close(self) -> None:
        """Nothing is held."""


async def to_thread(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a function, letting other tasks go on while it asks sub-models."""
    steps = stepwise.steps_of(func, args, kwargs)
    if steps is None:
        return func(*args, **kwargs)
    try:
        item = next(steps)
        while True:
            try:
                value = await _asked(item)
            except Exception as error:  # the function's own to handle
                item = steps.throw(error)
            else:
                item = steps.send(value)
    except StopIteration as stop:
        return stop.value


async def _asked(item: Question) -> Any:
    loop = asyncio.get_running_loop()
    # A loop of the cell's own making knows nothing of questions.
    return await loop.ask(item) if isinstance(loop, CellLoop) else questions.ask(item)


def awaitable(query: Callable[..., Any]) -> Callable[..., Any]:
    """Return the coroutine function that asks as a query function does."""

    async def asking(*args: Any, **kwargs: Any) -> Any:
        return await _asked(queries.QUESTIONS[query](*args, **kwargs))

    asking.__name__ = asking.__qualname__ = query.__name__
    return asking


def install() -> None:
    """Make asyncio use this loop, and do without threads."""
    asyncio.events.new_event_loop = asyncio.new_event_loop = CellLoop
    asyncio.threads.to_thread = asyncio.to_thread = to_thread
