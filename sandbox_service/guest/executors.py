"""`concurrent.futures` without threads: functions run in order, questions are asked together.

What is submitted runs at once, up to its first question to a sub-model. When a result is
needed, all questions that wait are sent as one batch, and their functions go on.
"""

import concurrent.futures
import concurrent.futures.thread
from collections.abc import Callable, Iterable
from typing import Any

from . import questions, stepwise
from .questions import Question


class StepwiseFuture(concurrent.futures.Future[Any]):
    """A future whose function goes on when somebody looks at it."""

    def __init__(self, finish: Callable[[], None]) -> None:
        super().__init__()
        self._finish = finish

    def finish(self) -> None:
        """Let everything that its executor was given run to its end."""
        if not super().done():
            self._finish()

    def result(self, timeout: float | None = None) -> Any:
        """Return what the function returned, or raise what it raised."""
        self.finish()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the function raised."""
        self.finish()
        return super().exception(timeout)

    def done(self) -> bool:
        """Let it run to its end: a loop that waits for that would never see it else."""
        self.finish()
        return super().done()


class ThreadPoolExecutor(concurrent.futures.Executor):
    """Runs functions in the order of their submission; see the module for questions."""

    def __init__(
        self,
        max_workers: int | None = None,
        _thread_name_prefix: str = "",
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        **_: Any,
    ) -> None:
        """Take what the library's own takes; `max_workers` of 1 keeps functions apart."""
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._gives_way = max_workers != 1
        self._waiting: list[tuple[StepwiseFuture, stepwise.Steps, Question]] = []
        self._is_shut_down = False
        if initializer is not None:
            initializer(*initargs)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> StepwiseFuture:
        """Run a function up to its first question, and return the future of its result."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = StepwiseFuture(self.finish)
        future.set_running_or_notify_cancel()
        try:
            steps = stepwise.steps_of(fn, args, kwargs) if self._gives_way else None
            if steps is None:
                future.set_result(fn(*args, **kwargs))
                return future
        except BaseException as error:  # as in a thread: it is the future's
            future.set_exception(error)
            return future
        self._go_on(future, steps, lambda: next(steps))
        return future

    def finish(self) -> None:
        """Let everything that was submitted run to its end."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            questions.send([question for _, _, question in waiting])
            for future, steps, question in waiting:
                self._answer(future, steps, question)

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Let everything run to its end, and take no more."""
        self._is_shut_down = True
        self.finish()

    def _answer(self, future: StepwiseFuture, steps: stepwise.Steps, question: Question) -> None:
        try:
            value = question.value()
        except Exception as error:  # the function's own to handle
            failure = error
            self._go_on(future, steps, lambda: steps.throw(failure))
        else:
            self._go_on(future, steps, lambda: steps.send(value))

    def _go_on(
        self, future: StepwiseFuture, steps: stepwise.Steps, step: Callable[[], Question]
    ) -> None:
        try:
            question = step()
        except StopIteration as stop:
            future.set_result(stop.value)
        except BaseException as error:  # as in a thread: it is the future's
            future.set_exception(error)
        else:
            self._waiting.append((future, steps, question))


class ProcessPoolExecutor(ThreadPoolExecutor):
    """The same: there are no processes either."""


def install() -> None:
    """Put these in the place of the library's own, which need threads and processes."""
    library: Any = concurrent.futures
    library.thread.ThreadPoolExecutor = library.ThreadPoolExecutor = ThreadPoolExecutor
    library.ProcessPoolExecutor = ProcessPoolExecutor
    for name in ("wait", "as_completed"):
        waiting = _finishing(getattr(library, name))
        setattr(library, name, waiting)
        setattr(library._base, name, waiting)  # noqa: SLF001


def _finishing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of futures that lets all of them finish before it looks at them."""

    def after_all(fs: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        """Wait for futures; all of them are done by then."""
        futures = list(fs)
        for future in futures:
            if isinstance(future, StepwiseFuture):
                future.finish()
        return function(futures, *args, **kwargs)

    after_all.__name__ = after_all.__qualname__ = function.__name__
    return after_all
