"""What supervisor and worker say to each other: length-prefixed msgpack, strictly typed.

A worker runs untrusted code, so the supervisor takes each frame as hostile: sizes are capped,
types are checked, and whatever does not fit is a FrameError that ends the worker. Long, so that all
that crosses this wall, with its bounds, can be read in one place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from sandbox_service.jail.wall import Wall
from sandbox_service.limits import Limits

FRAME_BYTES_MAX = 64 << 20
OUTPUT_TEXT_MAX = 64 << 10
"""Characters of one Output."""
GROWTH_BYTES = 64 << 20
BATCH_PROMPTS_MAX = 100_000
BATCH_MESSAGES_MAX = 100_000
"""Of all prompts together: each is an object here, and millions of them would take seconds."""
CHILD_RUNS_MAX = 1_000
"""Child runs of one call."""
CHILD_TEXT_MAX = 8 << 20
"""Characters of a context that a cell gives to a child by value."""
CHILD_DOCUMENTS_MAX = 10_000
HOST_TOOL_CALLS_MAX = 1_000
"""Host tool calls of one request."""
HOST_TOOL_ARGUMENTS_MAX = 1 << 20
"""Characters of a call's arguments."""
CITATIONS_MAX = 500
"""Places that one answer cites."""
QUOTE_CHARACTERS_MAX = 2_000
CITED_CHARACTERS_MAX = 256 << 10
"""Quotes and names of all places that one answer cites."""
_PROBLEM_CHARACTERS = 200
_LENGTH = struct.Struct("<I")

Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""What a signed 64-bit field of the service's own answers can carry."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Name = Annotated[str, Meta(max_length=256)]
Ending = Literal[
    "completed",
    "raised",
    "syntax_error",
    "exited",
    "out_of_fuel",
    "timed_out",
    "out_of_memory",
    "interrupted",
    "trapped",
    "refused",
    "worker_lost",
]
"""How executions end. That the worker died itself, only the supervisor can tell."""
Pattern = Literal[
    "built-code",
    "ctypes",
    "dunder-walk",
    "frame-walk",
    "heap-walk",
    "host-door",
    "long-literal",
    "module-tampering",
    "multiprocessing",
    "serialized-code",
    "socket",
    "subprocess",
    "tracing",
]
"""What the check of a cell's code may notice; see guest/code_check.py."""
CheckMode = Literal["off", "record", "refuse"]
"""What the check of a cell's code does with suspicious patterns."""


class FrameError(Exception):
    """The peer sent something that the protocol does not allow."""


# Parts


class Text(Struct, frozen=True, kw_only=True):
    """A text within a blob, and what decoding it is said to give."""

    name: str
    """Of a document; empty for a text that is a whole context."""
    offset_bytes: Natural
    """First byte within the blob."""
    size_bytes: Natural
    """Length within the blob."""
    characters: Natural
    """Code points of the decoded text."""
    code_point_max: Natural
    """Its largest code point."""
    is_lazy: bool = False
    """Whether the guest reads it piece by piece, from the mapped blob."""


class Mount(Struct, frozen=True, kw_only=True):
    """A context to load; its blob comes along as an open file."""

    variable: str
    """Name that the guest's code finds it under."""
    kind: Literal["text", "documents", "json"]
    """What is made of the texts."""
    texts: list[Text]
    """One, or one a document."""
    has_index: bool = False
    """Whether an open file with the blob's index comes along, after the blob's own."""


class Determinism(Struct, frozen=True, kw_only=True):
    """What makes an execution repeat bit for bit."""

    clock_ns: Natural
    """Unix time that clocks show when the session is opened."""
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    """Seed of all randomness."""


class Message(Struct, frozen=True):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    text: Annotated[str, Meta(min_length=1)]


class Question(Struct, frozen=True, kw_only=True):
    """What a cell asks of sub-models, by one call or by a batch."""

    prompts: Annotated[
        list[Annotated[list[Message], Meta(min_length=1)]],
        Meta(min_length=1, max_length=BATCH_PROMPTS_MAX),
    ]
    """One in a single call."""
    is_batch: bool
    """Whether it came from `llm_query_batched`."""
    tier: Name
    """The tier that is asked; empty for the session's own."""
    output_tokens_max: Annotated[int, Meta(ge=1, lt=1 << 31)] | None
    """Tokens to answer with; the gateway's default where None."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None
    """The provider's default where None."""

    def __post_init__(self) -> None:
        """Raise ValueError, which makes it no question, for too many messages."""
        if sum(map(len, self.prompts)) > BATCH_MESSAGES_MAX:
            raise ValueError(f"more than {BATCH_MESSAGES_MAX} messages")


class ValueText(Struct, frozen=True, kw_only=True, tag="value", tag_field="by"):
    """A text that a cell gives as it is."""

    text: Annotated[str, Meta(min_length=1, max_length=CHILD_TEXT_MAX)]


class SliceText(Struct, frozen=True, kw_only=True, tag="slice", tag_field="by"):
    """A part of the context of the cell's run."""

    document: Annotated[str, Meta(max_length=1024)]
    """Empty in a context of one text."""
    start: Natural
    """First character."""
    stop: Natural | None
    """After the last one; None for the end."""


class ChildDocument(Struct, frozen=True, kw_only=True):
    """A document of a child run's context."""

    name: Annotated[str, Meta(min_length=1, max_length=1024)]
    text: ValueText | SliceText


class ChildText(Struct, frozen=True, kw_only=True, tag="text", tag_field="kind"):
    """One text as a child run's context."""

    text: ValueText | SliceText


class ChildDocuments(Struct, frozen=True, kw_only=True, tag="documents", tag_field="kind"):
    """Documents as a child run's context."""

    documents: Annotated[list[ChildDocument], Meta(min_length=1, max_length=CHILD_DOCUMENTS_MAX)]


class ChildJson(Struct, frozen=True, kw_only=True, tag="json", tag_field="kind"):
    """A JSON value as a child run's context."""

    json: Annotated[str, Meta(min_length=1, max_length=CHILD_TEXT_MAX)]


Count = Annotated[int, Meta(ge=0, le=(1 << 53))]
"""A limit that a cell asks for."""


class ChildRun(Struct, frozen=True, kw_only=True):
    """A child run that a cell asks for; limits that are None are for the orchestrator to set."""

    question: Annotated[str, Meta(min_length=1, max_length=64 << 10)]
    context: ChildText | ChildDocuments | ChildJson | None
    """The whole context of the cell's run where None."""
    tier: Name
    """Of the child's root model; empty for the run's own."""
    sub_tier: Name
    """What the child's code asks; empty for the run's own."""
    schema: Annotated[str, Meta(max_length=64 << 10)]
    """JSON Schema of its answer, as JSON text; empty for none."""
    turns_max: Annotated[int, Meta(ge=1, lt=1 << 31)] | None
    time_max_s: Annotated[float, Meta(gt=0, le=1e9)] | None
    sub_calls_max: Count | None
    tokens_max: Count | None
    cost_usd_nanos_max: Count | None
    depth_max: Annotated[int, Meta(ge=0, lt=1 << 31)] | None
    children_live_max: Annotated[int, Meta(ge=0, lt=1 << 31)] | None


class ChildQuestion(Struct, frozen=True, kw_only=True):
    """What a cell asks of child runs, by one call or by a batch."""

    runs: Annotated[list[ChildRun], Meta(min_length=1, max_length=CHILD_RUNS_MAX)]
    """One in a single call."""
    is_batch: bool
    """Whether it came from `rlm_query_batched`."""


class HostToolCall(Struct, frozen=True, kw_only=True):
    """A call of a function outside of the session."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    arguments: Annotated[str, Meta(min_length=2, max_length=HOST_TOOL_ARGUMENTS_MAX)]
    """JSON text; whether it is what the tool takes is looked at elsewhere."""


class HostToolQuestion(Struct, frozen=True, kw_only=True):
    """The host tools that a cell calls at a time."""

    calls: Annotated[list[HostToolCall], Meta(min_length=1, max_length=HOST_TOOL_CALLS_MAX)]
    is_batch: bool


class Answer(Struct, frozen=True, tag="answer"):
    """What a sub-model said, or what a host tool gave, as JSON text."""

    text: str


class ChildAnswer(Struct, frozen=True, kw_only=True, tag="child_answer"):
    """What a child run found."""

    text: str
    is_json: bool
    run: str
    """`runs/{run}`."""
    limit: str
    """The limit that cut it short; empty for none."""


class Refusal(Struct, frozen=True, tag="refusal"):
    """Why there is no answer to a sub-call."""

    reason: str
    message: str
    is_limit: bool = False
    """True where a limit of the run is used up, so that asking again is of no use."""
    run: str = ""
    """The child run that ended so, if there was one."""


Outcome = Answer | ChildAnswer | Refusal
"""What became of one sub-call or child run."""


class Failure(Struct, frozen=True, kw_only=True):
    """What ended an execution before its end."""

    type: Name = ""
    message: Annotated[str, Meta(max_length=4096)] = ""
    traceback: Annotated[str, Meta(max_length=64 << 10)] = ""


class Finding(Struct, frozen=True, kw_only=True):
    """A suspicious pattern that the check of a cell's code noticed."""

    pattern: Pattern
    line: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
    detail: Annotated[str, Meta(max_length=200)]


class CitedPlace(Struct, frozen=True, kw_only=True):
    """A place of a context that the code cited, or a quote without one."""

    document: Annotated[str, Meta(max_length=1024)]
    """Empty in a context of one text."""
    start: Natural | None
    """First character; None for a quote without a place."""
    end: Natural | None
    """After the last character; None for a quote without a place."""
    quote: Annotated[str, Meta(max_length=QUOTE_CHARACTERS_MAX)]
    """What the code says that stands there."""


class Final(Struct, frozen=True, kw_only=True):
    """The answer that the code gave."""

    text: Annotated[str, Meta(max_length=1 << 20)]
    is_json: bool
    variable: Name
    confidence: Annotated[float, Meta(ge=0, le=1)] | None = None
    """How sure the code says that it is; None where it says nothing."""
    citations: Annotated[list[CitedPlace], Meta(max_length=CITATIONS_MAX)] = []
    """What the answer rests on, as the code says."""

    def __post_init__(self) -> None:
        """Raise ValueError, which makes it no answer, where it cites too much to be sent on."""
        size = sum(len(place.document) + len(place.quote) for place in self.citations)
        if size > CITED_CHARACTERS_MAX:
            raise ValueError(f"more than {CITED_CHARACTERS_MAX} characters are cited")


class Variable(Struct, frozen=True, kw_only=True):
    """One variable of the namespace."""

    name: Name
    type: Name
    length: Natural | None
    preview: Annotated[str, Meta(max_length=200)]


# To the worker


class Start(Struct, frozen=True, kw_only=True, tag="start"):
    """First frame: where the prepared guest is."""

    compiled: str
    library: str
    warm_images: dict[str, str]
    """By profile."""
    niceness: int = 0
    """How much later than others the worker gets processor time, 0 to 19."""


class Open(Struct, frozen=True, kw_only=True, tag="open"):
    """Start a session, or bring one back from its image.

    Open files come along: `layers` finished layers of the image, lowest first; the layer that
    the session writes to; then for each mount its blob, and its index where it has one.
    """

    session: int
    limits: Limits
    mounts: list[Mount]
    profile: str = "base"
    """Which warm image it starts from."""
    layers: int = 0
    """Finished layers below the one that the session writes to."""
    is_restored: bool = False
    """Whether the image already holds the session, contexts included."""
    determinism: Determinism | None = None
    """The host's own clock and randomness where None."""
    fuel_used: Natural = 0
    """Of the session so far."""
    time_used_s: Seconds = 0.0
    """Own time of the session so far."""


class Relayer(Struct, frozen=True, kw_only=True, tag="relayer"):
    """Take these files as the session's layers from here on; only to an idle session.

    `layers` finished ones come along, lowest first, then the one to write to. What they hold
    together is what the session's layers held before.
    """

    session: int
    layers: int


class Run(Struct, frozen=True, kw_only=True, tag="run"):
    """Run a cell in an idle session."""

    session: int
    execution: int
    code: str
    report_variables: bool
    check: CheckMode = "record"
    """What to do with suspicious patterns in the code."""
    random_stream: int = 0
    """Which stream of fixed randomness it draws from; 0 for that of its number."""
    run: str = ""
    """The run that it is of; empty where that is not known."""


class SubCallAnswers(Struct, frozen=True, kw_only=True, tag="sub_call_answers"):
    """The outcomes of a SubCalls, ChildRuns or HostTools, in the order of what it asks."""

    session: int
    call: int
    outcomes: list[Outcome]


class Interrupt(Struct, frozen=True, kw_only=True, tag="interrupt"):
    """Stop an execution if it is still running."""

    session: int
    execution: int


class Close(Struct, frozen=True, kw_only=True, tag="close"):
    """End a session; a running execution is interrupted."""

    session: int


ToWorker = Start | Open | Relayer | Run | SubCallAnswers | Interrupt | Close


# From the worker


class Started(Struct, frozen=True, kw_only=True, tag="started"):
    """First frame: the guest is loaded, or cannot be for the reason in `problem`."""

    problem: str = ""
    walls: Annotated[list[Wall], Meta(max_length=32)] = []
    """The walls around the worker, in the order they were raised."""


class Opened(Struct, frozen=True, kw_only=True, tag="opened"):
    """The session is ready."""

    session: int
    memory_bytes: Natural


class OpenFailed(Struct, frozen=True, kw_only=True, tag="open_failed"):
    """The session could not be started; it is gone."""

    session: int
    problem: Literal["too_large", "unreadable"]
    variable: Name
    message: Annotated[str, Meta(max_length=4096)]
    bytes_needed: Natural = 0


class Output(Struct, frozen=True, kw_only=True, tag="output"):
    """Text that the running code wrote."""

    session: int
    execution: int
    stream: Literal["stdout", "stderr"]
    text: Annotated[str, Meta(min_length=1, max_length=OUTPUT_TEXT_MAX)]


class Grown(Struct, frozen=True, kw_only=True, tag="grown"):
    """The running code has taken more memory, by at least GROWTH_BYTES since it was last told."""

    session: int
    execution: int
    memory_bytes: Natural


class SubCalls(Struct, frozen=True, kw_only=True, tag="sub_calls"):
    """The running code asks sub-models and waits."""

    session: int
    execution: int
    call: Annotated[int, Meta(ge=1)]
    """Position among the session's requests, from 1."""
    question: Question


class ChildRuns(Struct, frozen=True, kw_only=True, tag="child_runs"):
    """The running code asks child runs and waits."""

    session: int
    execution: int
    call: Annotated[int, Meta(ge=1)]
    """Position among the session's requests, SubCalls included, from 1."""
    question: ChildQuestion


class HostTools(Struct, frozen=True, kw_only=True, tag="host_tools"):
    """The running code calls host tools and waits."""

    session: int
    execution: int
    call: Annotated[int, Meta(ge=1)]
    """Position among the session's requests, SubCalls included, from 1."""
    question: HostToolQuestion


Asked = SubCalls | ChildRuns | HostTools
"""What the running code waits for."""


class Ended(Struct, frozen=True, kw_only=True, tag="ended"):
    """The execution is over."""

    session: int
    execution: int
    ending: Ending
    state_kept: bool
    failure: Failure | None
    final: Final | None
    variables: Annotated[list[Variable], Meta(max_length=200)]
    output_bytes: Natural
    output_bytes_dropped: Natural
    own_time_s: Seconds
    wait_time_s: Seconds
    fuel_used: Natural
    memory_bytes: Natural
    limit: Annotated[str, Meta(max_length=64)] = ""
    """The field of Limits that ended it, as SessionLimits of the contract names it."""
    findings: Annotated[list[Finding], Meta(max_length=20)] = []
    """What the check of the code noticed."""
    clock_ns: Natural = 0
    """Where a fixed clock stands; 0 where the clock is the host's."""


class Saved(Struct, frozen=True, kw_only=True, tag="saved"):
    """The session's layers hold its memory as of this execution, 0 for its start.

    Follows each Ended, and the Opened of a session that is not restored; until it comes the
    layers are not to be relied on.
    """

    session: int
    execution: int


class Lost(Struct, frozen=True, kw_only=True, tag="lost"):
    """The session ended by itself: a fault of the worker's own, or what its code did to it."""

    session: int
    cause: Annotated[str, Meta(max_length=4096)]
    is_broken: bool = False
    """Whether its own code broke it, so that it would break again elsewhere."""


class Closed(Struct, frozen=True, kw_only=True, tag="closed"):
    """Last frame of a session that was closed."""

    session: int


FromWorker = (
    Started
    | Opened
    | OpenFailed
    | Output
    | Grown
    | SubCalls
    | ChildRuns
    | HostTools
    | Ended
    | Saved
    | Lost
    | Closed
)


class FrameReader:
    """Cuts a stream of bytes into frames of one direction."""

    def __init__(self, frame_type: object) -> None:
        """Take the union of frames that may come."""
        self._decoder = msgspec.msgpack.Decoder(frame_type)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[object]:
        """Yield the frames that are complete; raises FrameError for what cannot be one."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"a frame of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                yield self._decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                # What is wrong may be quoted in it, and is the peer's own.
                problem = str(error)[:_PROBLEM_CHARACTERS]
                raise FrameError(f"a frame that does not decode: {problem}") from error


def encode(frame: ToWorker | FromWorker) -> bytes:
    """Return a frame's bytes; raises FrameError for one that is too large."""
    payload = msgspec.msgpack.encode(frame)
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {len(payload)} bytes; at most {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(payload)) + payload
