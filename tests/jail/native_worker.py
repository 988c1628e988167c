"""A worker whose WebAssembly wall is gone: a cell's code names an attempt of native code.

All else is the worker's own: how it is started, what it opens, when its walls are raised, and the
thread that a cell runs in.
"""

from __future__ import annotations

import json
import threading

from sandbox_service import frames
from sandbox_service.worker import worker
from tests.jail.attempts import Surroundings, outcome_of


class NativeWorker(worker.Worker):
    """Makes attempts where another runs cells."""

    def _handle(self, frame: object) -> None:
        if isinstance(frame, frames.Run):
            threading.Thread(target=self._attempt, args=(frame,)).start()
        else:
            super()._handle(frame)

    def _attempt(self, run: frames.Run) -> None:
        name, around = json.loads(run.code)
        outcome = outcome_of(name, Surroundings(**around)) or "nothing"
        output = frames.Output(
            session=run.session, execution=run.execution, stream="stdout", text=outcome
        )
        self.send(output)


if __name__ == "__main__":
    worker.Worker = NativeWorker  # type: ignore[misc]
    worker.main()
