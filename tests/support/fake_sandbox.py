"""A sandbox that runs code in this process, for tests of its callers. It is no sandbox at all.

Cells see `context`, `print`, `llm_query`, `FINAL`, `FINAL_VAR`, and three ways to go wrong:
`hang()`, `lose_session()` and `time_out()`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import dataclasses
import json
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.sandbox.v1 import execution_pb2 as ex
from fathom.sandbox.v1 import sandbox_service_pb2 as pb
from fathom.sandbox.v1 import sandbox_service_pb2_grpc
from fathom.sandbox.v1.session_pb2 import ContextMount, Session

from common.errors import NotFoundError, ServiceError
from common.server import Server
from tests.support.fake_gateway import generation

Context = grpc.aio.ServicerContext[Any, Any]
Result = ex.ExecutionResult


class SessionGoneError(ServiceError):
    """The session's worker has died."""

    code = grpc.StatusCode.NOT_FOUND
    reason = ErrorReason.ERROR_REASON_SESSION_LOST


class LimitError(ServiceError):
    """A limit of the run, as sandbox and gateway tell of it."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED

    def __init__(self, limit: str) -> None:
        super().__init__(f"{limit} exceeded", limit=limit, value=0, spent=0)


@dataclasses.dataclass
class FakeSession:
    """One session."""

    labels: dict[str, str]
    namespace: dict[str, Any]
    name: str = ""
    sub_calls: int = 0
    sub_calls_max: int = 0
    executions: int = 0
    is_busy: bool = False
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)


class _StoppedError(BaseException):
    def __init__(self, ending: Result.Ending.ValueType) -> None:
        super().__init__()
        self.ending = ending


class FakeSandbox(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Runs Python with nothing around it."""

    def __init__(self, objects: Path | None = None) -> None:
        self.objects = objects
        self.sessions: dict[str, FakeSession] = {}
        self.created: list[pb.CreateSessionRequest] = []
        self.executed: list[pb.ExecuteRequest] = []
        self.deleted: list[str] = []
        self.refreshed: list[str] = []
        """Run tokens that came while code ran."""
        self.lost: collections.Counter[str] = collections.Counter()
        """How often code has lost its session, by code."""
        self.restored: list[pb.RestoreSessionRequest] = []
        self.checkpoint_failures: list[Exception] = []
        """Raised by CheckpointSession, one after the other."""
        self.deletion_failures: list[Exception] = []
        """Raised by DeleteCheckpoints, one after the other."""
        self.checkpoints: dict[str, FakeSession] = {}
        self._names = 0
        self.failures: list[Exception] = []
        """Raised by CreateSession, one after the other."""
        self.execute_failures: list[Exception] = []
        """Raised by Execute before anything runs, one after the other."""
        self.answer: Callable[[str], str | Generation | ServiceError] = lambda prompt: (
            prompt.upper()
        )
        """What sub-models say."""

    def register(self, server: Server) -> None:
        """Add it to a server."""
        sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server(self, server.grpc)

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        """Open a session."""
        self.created.append(request)
        if self.failures:
            raise self.failures.pop(0)
        name = self._next_name()
        namespace = {mount.variable: self._mount(mount) for mount in request.contexts}
        self.sessions[name] = FakeSession(dict(request.labels), namespace, name=name)
        return pb.CreateSessionResponse(session=_described(self.sessions[name]))

    async def Execute(
        self, request: pb.ExecuteRequest, context: Context
    ) -> AsyncIterator[pb.ExecuteResponse]:
        """Run code in a thread and stream what it does."""
        self.executed.append(request)
        if self.execute_failures:
            raise self.execute_failures.pop(0)
        session = self._find(request.name)
        session.stop.clear()
        session.executions += 1
        session.is_busy = True
        session.sub_calls_max = session.sub_calls + request.sub_calls_max
        events: asyncio.Queue[ex.ExecutionEvent | None] = asyncio.Queue()
        execution = _Execution(self, session, request, events, asyncio.get_running_loop())
        running = asyncio.create_task(asyncio.to_thread(execution.run))
        start = ex.ExecutionStart(execution=session.executions)
        yield pb.ExecuteResponse(event=ex.ExecutionEvent(start=start))
        try:
            while (event := await events.get()) is not None:
                yield pb.ExecuteResponse(event=event)
            await running
        finally:
            session.is_busy = False
            session.stop.set()
        if execution.is_lost:
            del self.sessions[request.name]
            raise SessionGoneError("the worker died", session=request.name)
        yield pb.ExecuteResponse(event=ex.ExecutionEvent(result=execution.result))

    async def RefreshRunToken(
        self, request: pb.RefreshRunTokenRequest, context: Context
    ) -> pb.RefreshRunTokenResponse:
        """Note another run token."""
        self._find(request.name)
        self.refreshed.append(request.run_token)
        return pb.RefreshRunTokenResponse()

    async def InterruptExecution(
        self, request: pb.InterruptExecutionRequest, context: Context
    ) -> pb.InterruptExecutionResponse:
        """Stop code that hangs."""
        self._find(request.name).stop.set()
        return pb.InterruptExecutionResponse(was_running=True)

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse:
        """End a session."""
        self.deleted.append(request.name)
        session = self.sessions.pop(request.name, None)
        if session is not None:
            session.stop.set()
        return pb.DeleteSessionResponse()

    async def ForkSession(
        self, request: pb.ForkSessionRequest, context: Context
    ) -> pb.ForkSessionResponse:
        """Refuse."""
        raise ServiceError("ForkSession: the fake has none")

    async def CheckpointSession(
        self, request: pb.CheckpointSessionRequest, context: Context
    ) -> pb.CheckpointSessionResponse:
        """Keep a copy of a session."""
        if self.checkpoint_failures:
            raise self.checkpoint_failures.pop(0)
        session = self._find(request.name)
        folder = f"checkpoints/of/{request.owner}" if request.owner else "checkpoints"
        self._names += 1
        key = f"{folder}/{self._names:064x}"
        self.checkpoints[key] = FakeSession(
            {}, _copied(session.namespace), executions=session.executions
        )
        stored = pb.Checkpoint(key=key, size_bytes=1, executions=session.executions)
        return pb.CheckpointSessionResponse(checkpoint=stored)

    async def DeleteCheckpoints(
        self, request: pb.DeleteCheckpointsRequest, context: Context
    ) -> pb.DeleteCheckpointsResponse:
        """Forget an owner's copies, however young."""
        if self.deletion_failures:
            raise self.deletion_failures.pop(0)
        kept, folder = set(request.kept_keys), f"checkpoints/of/{request.owner}/"
        gone = {key for key in self.checkpoints if key.startswith(folder)} - kept
        for key in gone:
            del self.checkpoints[key]
        return pb.DeleteCheckpointsResponse(objects_deleted=len(gone))

    async def RestoreSession(
        self, request: pb.RestoreSessionRequest, context: Context
    ) -> pb.RestoreSessionResponse:
        """Make a session from such a copy."""
        self.restored.append(request)
        if request.checkpoint_key not in self.checkpoints:
            raise NotFoundError(request.checkpoint_key)
        stored, name = self.checkpoints[request.checkpoint_key], self._next_name()
        self.sessions[name] = FakeSession(
            dict(request.labels),
            _copied(stored.namespace),
            name=name,
            executions=stored.executions,
        )
        return pb.RestoreSessionResponse(session=_described(self.sessions[name]))

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Context
    ) -> pb.GetSessionResponse:
        """Describe a session."""
        return pb.GetSessionResponse(session=_described(self._find(request.name)))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """Describe the sessions that have the labels."""
        wanted = dict(request.labels).items()
        found = [each for each in self.sessions.values() if wanted <= each.labels.items()]
        return pb.ListSessionsResponse(sessions=map(_described, found))

    async def GetSandboxInfo(
        self, request: pb.GetSandboxInfoRequest, context: Context
    ) -> pb.GetSandboxInfoResponse:
        """Refuse."""
        raise ServiceError("GetSandboxInfo: the fake has none")

    def _next_name(self) -> str:
        self._names += 1
        return f"sessions/s{self._names}"

    def _find(self, name: str) -> FakeSession:
        if name not in self.sessions:
            raise NotFoundError(name)
        return self.sessions[name]

    def _mount(self, mount: ContextMount) -> Any:
        if self.objects is None:
            return "no objects"
        data = (self.objects / mount.blob_key).read_bytes()
        if mount.kind == ContextMount.KIND_JSON:
            return json.loads(data)
        if mount.kind == ContextMount.KIND_TEXT:
            return data.decode(errors="replace")
        return {
            part.name: data[part.offset_bytes :][: part.size_bytes].decode(errors="replace")
            for part in mount.documents
        }


def _described(session: FakeSession) -> Session:
    state = Session.STATE_BUSY if session.is_busy else Session.STATE_IDLE
    return Session(
        name=session.name,
        state=state,
        executions=session.executions,
        sub_calls=session.sub_calls,
        labels=session.labels,
    )


def _copied(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return a namespace that shares no value with the original; what cannot be copied is left
    out, as are the functions that each execution gets anew."""
    copied: dict[str, Any] = {}
    for name, value in namespace.items():
        with contextlib.suppress(TypeError, AttributeError):
            copied[name] = copy.deepcopy(value)
    return copied


class _Execution:
    """One piece of code in its thread."""

    def __init__(
        self,
        sandbox: FakeSandbox,
        session: FakeSession,
        request: pb.ExecuteRequest,
        events: asyncio.Queue[ex.ExecutionEvent | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._sandbox = sandbox
        self._session = session
        self._request = request
        self._events = events
        self._loop = loop
        self.result = Result(ending=Result.ENDING_COMPLETED, state_kept=True)
        self.is_lost = False

    def run(self) -> None:
        namespace = self._session.namespace
        provided = {
            "print": self._print,
            "llm_query": self._llm_query,
            "cite": self._cite,
            "FINAL": self._final,
            "FINAL_VAR": self._final_var,
            "hang": self._hang,
            "pause": self._pause,
            "lose_session": self._lose,
            "time_out": self._time_out,
        }
        namespace.update(provided)
        try:
            exec(compile(self._request.code, "<cell>", "exec"), namespace)
        except SyntaxError as error:
            self._end(Result.ENDING_SYNTAX_ERROR, error)
        except SystemExit as error:
            self._end(Result.ENDING_EXITED, error)
        except _StoppedError as stopped:
            self._end(stopped.ending, None)
            self.result.state_kept = False
        except Exception as error:
            self._print(traceback.format_exc())
            self._end(Result.ENDING_RAISED, error)
            self.result.error.traceback = traceback.format_exc()
        finally:
            hidden = {*provided, "__builtins__"}
            # One that was stopped cannot say what there is.
            for name in sorted(namespace.keys() - hidden if self.result.state_kept else ()):
                self.result.variables.add(name=name, type=type(namespace[name]).__name__)
            self._loop.call_soon_threadsafe(self._events.put_nowait, None)

    def _end(self, ending: Result.Ending.ValueType, error: BaseException | None) -> None:
        self.result.ending = ending
        if error is not None:
            self.result.error.type = type(error).__name__
            self.result.error.message = str(error)

    def _emit(self, event: ex.ExecutionEvent) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _print(self, *values: object) -> None:
        text = " ".join(map(str, values)) + "\n"
        chunk = ex.OutputChunk(stream=ex.OutputChunk.STREAM_STDOUT, text=text)
        self._emit(ex.ExecutionEvent(output=chunk))

    def _llm_query(self, prompt: str) -> str:
        if self._session.sub_calls >= self._session.sub_calls_max:
            self._fail(LimitError("sub_calls_max"))
        self._session.sub_calls += 1
        number = self._session.sub_calls
        started = ex.SubCallStarted(
            sub_call=number, tier="sub", prompt_characters=len(prompt), prompt_head=prompt[:500]
        )
        self._emit(ex.ExecutionEvent(sub_call_started=started))
        answer = self._sandbox.answer(prompt)
        finished = ex.SubCallFinished(sub_call=number)
        if isinstance(answer, ServiceError):
            finished.error.CopyFrom(answer.to_status())
            self._emit(ex.ExecutionEvent(sub_call_finished=finished))
            self._fail(answer)
        finished.generation.CopyFrom(generation(answer))
        self._emit(ex.ExecutionEvent(sub_call_finished=finished))
        return finished.generation.text

    def _fail(self, error: ServiceError) -> NoReturn:
        if error.reason == ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED:
            self.result.limit_reached.CopyFrom(error.to_status())
        raise RuntimeError(str(error))

    def _cite(self, document: str, start: int, end: int, quote: str) -> None:
        """Cite whatever is said, also what is a lie."""
        self.result.final.citations.add(document=document, start=start, end=end, quote=quote)

    def _final(self, value: object, *, confidence: float | None = None) -> None:
        self.result.final.text = value if isinstance(value, str) else json.dumps(value)
        self.result.final.is_json = not isinstance(value, str)
        if confidence is not None:
            self.result.final.confidence = confidence

    def _final_var(self, name: str, *, confidence: float | None = None) -> None:
        if name not in self._session.namespace:
            raise NameError(f"FINAL_VAR: there is no variable {name!r}")
        self._final(self._session.namespace[name], confidence=confidence)
        self.result.final.variable = name

    def _hang(self) -> None:
        self._session.stop.wait()
        raise _StoppedError(Result.ENDING_INTERRUPTED)

    def _pause(self) -> None:
        """Go on after a moment, unless the execution has been stopped by then."""
        if self._session.stop.wait(timeout=0.01):
            raise _StoppedError(Result.ENDING_INTERRUPTED)

    def _time_out(self) -> None:
        raise _StoppedError(Result.ENDING_TIMED_OUT)

    def _lose(self, times: int | None = None) -> None:
        """Take the session along: always, or only the first few times."""
        code = self._request.code
        self._sandbox.lost[code] += 1
        if times is not None and self._sandbox.lost[code] > times:
            return
        self.is_lost = True
        raise _StoppedError(Result.ENDING_TRAPPED)
