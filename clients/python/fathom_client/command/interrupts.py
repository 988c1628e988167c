"""Ctrl-C and SIGTERM: the first may be given a gentler meaning, the next ends the command."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Returned = TypeVar("Returned")


async def aside(function: Callable[[], Returned]) -> Returned:
    """Call what may wait for as long as it likes, such as for a pipe, and return its result.

    The loop goes on and hears of signals. The thread is one that nobody waits for at the end, as
    the pools of asyncio would be.
    """
    outcome: concurrent.futures.Future[Returned] = concurrent.futures.Future()

    def call() -> None:
        outcome.set_running_or_notify_cancel()
        try:
            outcome.set_result(function())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return await asyncio.wrap_future(outcome)


class Interrupts:
    """Signals that ask this command to stop."""

    def __init__(self, main_task: asyncio.Task[int]) -> None:
        """Watch over `main_task`, which a signal without another meaning cancels."""
        self._main_task = main_task
        self._gentle: Callable[[], None] | None = None
        self.happened = False
        """True once a signal came."""

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Take the signals inside the block."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._take)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def first_means(self, action: Callable[[], None]) -> Iterator[None]:
        """Inside the block, the first signal calls `action` instead of ending the command."""
        self._gentle = action
        try:
            yield
        finally:
            self._gentle = None

    def stop(self) -> None:
        """End the command."""
        self._main_task.cancel()

    def _take(self) -> None:
        self.happened = True
        action, self._gentle = self._gentle, None
        if action is not None:
            action()
        else:
            self.stop()
