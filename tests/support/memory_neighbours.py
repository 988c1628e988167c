"""The neighbours of a run that is driven in this process: a model that remembers by request id, and
sessions that remember by name, as the real services do.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import dataclasses
import hashlib
import io
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.sandbox.v1 import execution_pb2 as ex

from common.errors import ReceivedError
from orchestrator.runs.ports import (
    CellOrder,
    ModelCall,
    OpenSession,
    RestoreOrder,
    SessionOrder,
    StoredSession,
)
from tests.support.fake_gateway import ScriptedError, generation

Result = ex.ExecutionResult
Reply = str | ScriptedError
_TICKS = itertools.count()
"""What `unsteady()` in a cell returns: never the same."""


def failure(code: grpc.StatusCode, reason: ErrorReason.ValueType, **metadata: str) -> ReceivedError:
    """Return an error as a call of another service raises it."""
    return ReceivedError(ScriptedError(code, reason, **metadata).to_status())


class LedgerModel:
    """Answers a request id once, and again for nothing; another prompt under it is a defect."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = replies
        self._answers: dict[str, tuple[bytes, str]] = {}
        self.paid: list[str] = []
        """Request ids of calls that cost something."""
        self.absences: list[ReceivedError] = []
        """Raised before a call, one after the other."""

    async def generate(self, call: ModelCall) -> Generation:
        """Answer with the reply of the call's turn."""
        for _ in range(10):  # what is done while the model thinks gets its time
            await asyncio.sleep(0)
        if self.absences:
            raise self.absences.pop(0)
        reply = self._replies[min(call.turn, len(self._replies)) - 1]
        if isinstance(reply, ScriptedError):
            raise ReceivedError(reply.to_status())
        text = "\0".join(message.text for message in call.messages)
        return self.answer(call.request_id, text, reply)

    def answer(self, request_id: str, prompt: str, reply: str) -> Generation:
        """Return a reply, paid where the request id is not known."""
        digest = hashlib.sha256(prompt.encode()).digest()
        known = self._answers.get(request_id)
        if known is None:
            self._answers[request_id] = digest, reply
            self.paid.append(request_id)
            return generation(reply)
        assert known[0] == digest, f"{request_id} was asked for something else"
        repeated = generation(known[1])
        repeated.recorded_usage.CopyFrom(repeated.usage)
        repeated.ClearField("usage")
        repeated.attempts = 0
        return repeated

    async def count_tokens(self, *_: object, **__: object) -> int:
        """Know no vocabulary."""
        return 0


@dataclasses.dataclass
class _Session:
    name: str
    run_id: str
    started_ns: int
    clock_ns: int
    seed: int
    namespace: dict[str, Any]
    executions: int = 0
    sub_calls: int = 0


class MemorySandbox:
    """Runs Python in sessions that repeat: `now()` and `rand()` depend on what has run, and
    `ask(prompt)` on the model's ledger. `lose_once()` takes the session with the cell."""

    def __init__(self, model: LedgerModel) -> None:
        self._model = model
        self.sessions: dict[str, _Session] = {}
        self.checkpoints: dict[str, _Session] = {}
        self.opened = 0
        self.natures: set[tuple[int, int]] = set()
        """Clock and seed of each session when it was opened."""
        self.executed: list[str] = []
        self.known_failures: list[list[int]] = []
        """Of each execution, the sub-calls that were not to be made again."""
        self.absences: list[ReceivedError] = []
        """Raised before an execution, one after the other."""
        self.stalls: list[ReceivedError] = []
        """Raised before sessions are listed, one after the other."""
        self.losses_by_code = 0
        """How often each piece of code loses its session once it has run."""
        self.forgets_checkpoints = False
        self.lost: collections.Counter[str] = collections.Counter()
        """How often code has lost its session, by code."""

    async def open_session(self, order: SessionOrder) -> str:
        """Open an empty session."""
        return self._new(order.run_id, order.clock_ns, order.seed, {}).name

    async def restore_session(self, order: RestoreOrder) -> OpenSession:
        """Open a copy of a checkpoint."""
        if self.forgets_checkpoints:
            reason = ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND
            raise failure(grpc.StatusCode.NOT_FOUND, reason)
        stored = self.checkpoints[order.checkpoint_key]
        session = self._new(
            order.run_id, stored.started_ns, stored.seed, copy.deepcopy(stored.namespace)
        )
        session.executions, session.sub_calls = stored.executions, stored.sub_calls
        session.clock_ns = stored.clock_ns
        return OpenSession(session.name, session.executions, True)

    async def sessions_of(self, run_id: str) -> Sequence[OpenSession]:
        """Return the sessions of a run."""
        if self.stalls:
            raise self.stalls.pop(0)
        return [
            OpenSession(each.name, each.executions, True)
            for each in self.sessions.values()
            if each.run_id == run_id
        ]

    async def note(self, tenant: str, owner: str) -> None:
        """Do nothing: no checkpoint is ever deleted."""

    async def checkpoint(self, session: str, owner: str) -> StoredSession:
        """Keep a copy."""
        key = f"checkpoints/{len(self.checkpoints)}"
        self.checkpoints[key] = copy.deepcopy(self._find(session))
        return StoredSession(key, 1, self._find(session).executions)

    async def refresh_run_token(self, session: str, run_token: str) -> None:
        """Do nothing: tokens are not looked at."""

    async def interrupt(self, session: str) -> None:
        """Do nothing: code ends by itself."""

    async def delete_session(self, session: str) -> None:
        """Forget a session."""
        self.sessions.pop(session, None)

    async def execute(self, order: CellOrder) -> AsyncGenerator[ex.ExecutionEvent, None]:
        """Run code at once, then tell of it; who stops listening undoes it."""
        if self.absences:
            raise self.absences.pop(0)
        session = self._find(order.session)
        self.executed.append(order.code)
        self.known_failures.append(sorted(order.failed_sub_calls))
        before = copy.deepcopy(session.namespace), session.clock_ns
        execution = _Execution(self._model, session, order)
        events, result = execution.run()
        session.executions += 1
        try:
            yield ex.ExecutionEvent(start=ex.ExecutionStart(execution=session.executions))
            for event in events:
                await asyncio.sleep(0)
                yield event
        except GeneratorExit:
            session.namespace, session.clock_ns = before
            raise
        is_lost_once = execution.is_lost_once and not self.lost[order.code]
        if is_lost_once or self.lost[order.code] < self.losses_by_code:
            self.lost[order.code] += 1
            self.sessions.pop(session.name, None)
            raise failure(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_SESSION_LOST)
        if not result.state_kept:
            session.namespace, session.clock_ns = before
        yield ex.ExecutionEvent(result=result)

    def _new(self, run_id: str, clock_ns: int, seed: int, namespace: dict[str, Any]) -> _Session:
        self.opened += 1
        name = f"sessions/s{self.opened}"
        self.natures.add((clock_ns, seed))
        self.sessions[name] = _Session(name, run_id, clock_ns, clock_ns, seed, namespace)
        return self.sessions[name]

    def _find(self, name: str) -> _Session:
        if name not in self.sessions:
            reason = ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND
            raise failure(grpc.StatusCode.NOT_FOUND, reason)
        return self.sessions[name]


class _Execution:
    def __init__(self, model: LedgerModel, session: _Session, order: CellOrder) -> None:
        self._model = model
        self._session = session
        self._order = order
        self._reads = 0
        self._asked = 0
        self._events: list[ex.ExecutionEvent] = []
        self._result = Result(ending=Result.ENDING_COMPLETED, state_kept=True)
        self.is_lost_once = False

    def run(self) -> tuple[list[ex.ExecutionEvent], Result]:
        provided = {
            "now": self._now,
            "rand": self._rand,
            "ask": self._ask,
            "FINAL": self._final,
            "FINAL_VAR": lambda name: self._final(self._session.namespace[name]),
            "undo": self._undo,
            "lose_once": self._lose_once,
            "unsteady": lambda: next(_TICKS),
        }
        output = io.StringIO()
        names = {**self._session.namespace, **provided}
        self._session.clock_ns += len(self._order.code)
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(self._order.code, "<cell>", "exec"), names)
        except _UndoneError:
            self._result.ending, self._result.state_kept = Result.ENDING_OUT_OF_FUEL, False
        except Exception as error:
            self._result.ending = Result.ENDING_RAISED
            self._result.error.type = type(error).__name__
            self._result.error.message = str(error)
        hidden = {*provided, "__builtins__"}
        self._session.namespace = {k: v for k, v in names.items() if k not in hidden}
        for name, value in sorted(self._session.namespace.items()):
            self._result.variables.add(name=name, type=type(value).__name__)
        if output.getvalue():
            chunk = ex.OutputChunk(text=output.getvalue())
            self._events.append(ex.ExecutionEvent(output=chunk))
        return self._events, self._result

    def _now(self) -> int:
        return self._session.clock_ns - self._session.started_ns

    def _rand(self) -> str:
        self._reads += 1
        origin = f"{self._session.seed}/{self._order.random_stream}/{self._reads}"
        return hashlib.sha256(origin.encode()).hexdigest()[:8]

    def _ask(self, prompt: str) -> str:
        assert self._asked < self._order.sub_calls_max, "code asked more than it did at first"
        self._asked += 1
        self._session.sub_calls += 1
        number = self._session.sub_calls
        started = ex.SubCallStarted(sub_call=number, prompt_head=prompt)
        self._events.append(ex.ExecutionEvent(sub_call_started=started))
        event = ex.ExecutionEvent(sub_call_finished=ex.SubCallFinished(sub_call=number))
        self._events.append(event)
        finished = event.sub_call_finished
        known = self._order.failed_sub_calls.get(self._asked)
        if known is not None or prompt.startswith("fail"):
            reason = ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
            status = known or failure(grpc.StatusCode.UNAVAILABLE, reason).status
            finished.error.CopyFrom(status)
            raise RuntimeError(status.message)
        request_id = f"{self._order.call_prefix}/{self._asked}"
        finished.generation.CopyFrom(self._model.answer(request_id, prompt, prompt.upper()))
        return finished.generation.text

    def _final(self, value: object) -> None:
        self._result.final.text = str(value)

    def _undo(self) -> None:
        raise _UndoneError

    def _lose_once(self) -> None:
        self.is_lost_once = True


class _UndoneError(Exception):
    pass
