"""Writes what goes over the wire, from the service's own values."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.gateway.v1.generation_pb2 import Generation
from fathom.orchestrator.v1.run_pb2 import Run
from fathom.sandbox.v1 import execution_pb2, session_pb2
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import ServiceError
from sandbox_service import frames
from sandbox_service.checkpoints import Checkpoint
from sandbox_service.child_runs import ChildRunChanged, ChildRunFinished
from sandbox_service.execution_stream import Ended, Event
from sandbox_service.host_tools import HostToolCalled
from sandbox_service.jail.wall import Wall
from sandbox_service.session import Session, SessionState
from sandbox_service.session_limits import wire_limits
from sandbox_service.sub_calls import SubCallFinished, SubCallStarted

_ANSWER_HEAD_CHARACTERS = 500
_STATES = {
    SessionState.IDLE: session_pb2.Session.STATE_IDLE,
    SessionState.BUSY: session_pb2.Session.STATE_BUSY,
    SessionState.EVICTED: session_pb2.Session.STATE_EVICTED,
    SessionState.LOST: session_pb2.Session.STATE_LOST,
}
_STREAMS = {
    "stdout": execution_pb2.OutputChunk.STREAM_STDOUT,
    "stderr": execution_pb2.OutputChunk.STREAM_STDERR,
}
_ENDINGS: dict[frames.Ending, execution_pb2.ExecutionResult.Ending.ValueType] = {
    "completed": execution_pb2.ExecutionResult.ENDING_COMPLETED,
    "raised": execution_pb2.ExecutionResult.ENDING_RAISED,
    "syntax_error": execution_pb2.ExecutionResult.ENDING_SYNTAX_ERROR,
    "exited": execution_pb2.ExecutionResult.ENDING_EXITED,
    "out_of_fuel": execution_pb2.ExecutionResult.ENDING_OUT_OF_FUEL,
    "timed_out": execution_pb2.ExecutionResult.ENDING_TIMED_OUT,
    "out_of_memory": execution_pb2.ExecutionResult.ENDING_OUT_OF_MEMORY,
    "interrupted": execution_pb2.ExecutionResult.ENDING_INTERRUPTED,
    "trapped": execution_pb2.ExecutionResult.ENDING_TRAPPED,
    "refused": execution_pb2.ExecutionResult.ENDING_REFUSED,
    "worker_lost": execution_pb2.ExecutionResult.ENDING_WORKER_LOST,
}


def session(value: Session) -> session_pb2.Session:
    """Return a session's wire form."""
    return session_pb2.Session(
        name=value.name,
        state=_STATES[value.state],
        limits=wire_limits(value.limits),
        create_time=_timestamp(value.created_at),
        expire_time=_timestamp(value.expires_at),
        memory_bytes=value.memory_bytes,
        sub_calls=value.meter.made,
        executions=value.executions,
        labels=value.labels,
        profile=value.profile,
        checkpoint_key=value.checkpoint_key,
        lazy_variables=[
            blob.mount.variable for blob in value.options.contexts if blob.mount.has_index
        ],
    )


def checkpoint(value: Checkpoint) -> wire.Checkpoint:
    """Return a checkpoint's wire form."""
    manifest = value.manifest
    return wire.Checkpoint(
        key=value.key,
        size_bytes=value.size_bytes,
        guest_digest=manifest.guest_digest,
        executions=manifest.use.executions,
        create_time=_timestamp(value.taken_at),
        profile=manifest.profile,
    )


def wall(value: Wall) -> wire.Wall:
    """Return a wall's wire form."""
    return wire.Wall(name=value.name, raised=value.raised, detail=value.detail)


def events(values: Sequence[int | Event], *, joined: bool) -> list[wire.ExecuteResponse]:
    """Return the wire form of events, in one response where they may be joined; the number of an
    execution is its start."""
    told = [_event(value) for value in values]
    if not joined:
        return [wire.ExecuteResponse(event=event) for event in told]
    return [wire.ExecuteResponse(event=told[0], further=told[1:])]


def _event(value: int | Event) -> execution_pb2.ExecutionEvent:
    if isinstance(value, int):
        start = execution_pb2.ExecutionStart(execution=value)
        return execution_pb2.ExecutionEvent(start=start)
    if isinstance(value, frames.Output):
        chunk = execution_pb2.OutputChunk(stream=_STREAMS[value.stream], text=value.text)
        return execution_pb2.ExecutionEvent(output=chunk)
    if isinstance(value, SubCallStarted):
        started = execution_pb2.SubCallStarted(
            sub_call=value.number,
            batch=value.batch,
            tier=value.tier,
            prompt_characters=value.prompt_characters,
            prompt_head=value.prompt_head,
        )
        return execution_pb2.ExecutionEvent(sub_call_started=started)
    if isinstance(value, SubCallFinished):
        return execution_pb2.ExecutionEvent(sub_call_finished=_finished(value))
    if isinstance(value, ChildRunChanged):
        changed = execution_pb2.ChildRunChanged(
            child_run=value.number, batch=value.batch, run=_child_run(value.run)
        )
        return execution_pb2.ExecutionEvent(child_run_changed=changed)
    if isinstance(value, ChildRunFinished):
        return execution_pb2.ExecutionEvent(child_run_finished=_child_finished(value))
    if isinstance(value, HostToolCalled):
        return execution_pb2.ExecutionEvent(host_tool_called=_tool_called(value))
    return execution_pb2.ExecutionEvent(result=_result(value))


def _finished(value: SubCallFinished) -> execution_pb2.SubCallFinished:
    finished = execution_pb2.SubCallFinished(
        sub_call=value.number, elapsed=_duration(value.elapsed_s)
    )
    if isinstance(value.outcome, ServiceError):
        finished.error.CopyFrom(value.outcome.to_status())
    else:
        shown = Generation()
        shown.CopyFrom(value.outcome)
        shown.text = shown.text[:_ANSWER_HEAD_CHARACTERS]
        shown.reasoning = ""
        finished.generation.CopyFrom(shown)
    return finished


def _child_finished(value: ChildRunFinished) -> execution_pb2.ChildRunFinished:
    finished = execution_pb2.ChildRunFinished(
        child_run=value.number, batch=value.batch, elapsed=_duration(value.elapsed_s)
    )
    if isinstance(value.outcome, ServiceError):
        finished.error.CopyFrom(value.outcome.to_status())
    else:
        finished.run.CopyFrom(_child_run(value.outcome))
    return finished


def _tool_called(value: HostToolCalled) -> execution_pb2.HostToolCalled:
    called = execution_pb2.HostToolCalled(
        call=value.number,
        tool=value.call.name,
        arguments_head=value.call.arguments[:_ANSWER_HEAD_CHARACTERS],
        elapsed=_duration(value.elapsed_s),
    )
    if isinstance(value.outcome, ServiceError):
        called.error.CopyFrom(value.outcome.to_status())
    else:
        called.result_head = value.outcome[:_ANSWER_HEAD_CHARACTERS]
    return called


def _child_run(run: Run) -> execution_pb2.ChildRun:
    child = execution_pb2.ChildRun(
        name=run.name,
        state=Run.State.Name(run.state).removeprefix("STATE_"),
        question_head=run.spec.question[:_ANSWER_HEAD_CHARACTERS],
        answer_head=run.answer.text[:_ANSWER_HEAD_CHARACTERS],
        limit_reached=run.answer.limit_reached,
        usage=run.usage,
        sub_calls=run.sub_calls,
        depth=run.depth,
    )
    if run.HasField("error"):
        child.error.CopyFrom(run.error)
    return child


def _result(value: Ended) -> execution_pb2.ExecutionResult:
    ended = value.frame
    result = execution_pb2.ExecutionResult(
        ending=_ENDINGS[ended.ending],
        state_kept=ended.state_kept,
        output_bytes=ended.output_bytes,
        output_bytes_dropped=ended.output_bytes_dropped,
        own_time=_duration(ended.own_time_s),
        wait_time=_duration(ended.wait_time_s),
        fuel_used=ended.fuel_used,
        memory_bytes=ended.memory_bytes,
        variables=[_variable(variable) for variable in ended.variables],
        findings=[_finding(finding) for finding in ended.findings],
        limit=ended.limit,
    )
    if ended.failure is not None:
        failure = ended.failure
        result.error.type = failure.type
        result.error.message = failure.message
        result.error.traceback = failure.traceback
    if ended.final is not None:
        final = ended.final
        result.final.text = final.text
        result.final.is_json = final.is_json
        result.final.variable = final.variable
        if final.confidence is not None:
            result.final.confidence = final.confidence
        result.final.citations.extend(map(_cited, final.citations))
    if value.limit_reached is not None:
        result.limit_reached.CopyFrom(value.limit_reached.to_status())
    return result


def _cited(value: frames.CitedPlace) -> execution_pb2.CitedPlace:
    return execution_pb2.CitedPlace(
        document=value.document, start=value.start, end=value.end, quote=value.quote
    )


def _finding(value: frames.Finding) -> execution_pb2.SecurityFinding:
    return execution_pb2.SecurityFinding(
        pattern=value.pattern, line=value.line, detail=value.detail
    )


def _variable(value: frames.Variable) -> execution_pb2.Variable:
    return execution_pb2.Variable(
        name=value.name, type=value.type, length=value.length, preview=value.preview
    )


def _timestamp(seconds: float) -> Timestamp:
    value = Timestamp()
    value.FromNanoseconds(int(seconds * 1e9))
    return value


def _duration(seconds: float) -> Duration:
    value = Duration()
    value.FromNanoseconds(int(seconds * 1e9))
    return value
