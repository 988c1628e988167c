"""Reads and checks what comes over the wire; every complaint names its field."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from common.errors import (
    InvalidFieldError,
    LimitAboveCeilingError,
    ReceivedError,
    ServiceError,
)
from sandbox_service.checkpoints import Manifest, is_checkpoint_key, is_owner
from sandbox_service.config import SandboxConfig
from sandbox_service.context_mounts import ContextBlob
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.frames import CheckMode, Determinism, Mount, Text
from sandbox_service.objects import OWN_PREFIXES, is_key
from sandbox_service.profiles import DEFAULT_PROFILE, PROFILES
from sandbox_service.session_limits import read_limits, wire_limits
from sandbox_service.session_options import DEFAULT_SUB_TIER, SessionOptions

CODE_BYTES_MAX = 1 << 20
_CONTEXTS_MAX = 16
_DOCUMENTS_MAX = 100_000
_LABELS_MAX = 16
_FAILED_SUB_CALLS_MAX = 10_000
_KEPT_KEYS_MAX = 10_000
_RUN_TOKEN = re.compile(r"[\x20-\x7e]{0,16384}")
"""What a header can carry; the gateway says whether it is a token."""
_TEXT_CHARACTERS_MAX = 256
_CLOCK_NS_END = 7_258_118_400 * 10**9
_NAME = re.compile(r"sessions/[0-9a-z][0-9a-z-]{0,63}")
PROVIDED_NAMES = frozenset(
    {"FINAL", "FINAL_VAR", "SHOW_VARS", "FailedQuery", "LLMQueryError", "LimitExceededError"}
    | {"ChildRunError", "part", "call_tool", "HostToolError", "HostToolRefusedError"}
    | {"llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched"}
    | {"grep", "chunks", "lines", "cite", "SchemaMismatchError"}
)
"""What guest/cells.py puts into the namespace."""
_KINDS: dict[int, Literal["text", "documents", "json"]] = {
    session_pb2.ContextMount.KIND_TEXT: "text",
    session_pb2.ContextMount.KIND_DOCUMENTS: "documents",
    session_pb2.ContextMount.KIND_JSON: "json",
}


def session_name(name: str) -> str:
    """Return a session's name; raises InvalidFieldError for what is none."""
    if not _NAME.fullmatch(name):
        raise InvalidFieldError("name", f"must be sessions/ and an id; got {name[:80]!r}")
    return name


def request_id(value: str) -> str:
    """Return a request id; raises InvalidFieldError where it is too long."""
    if len(value) > _TEXT_CHARACTERS_MAX:
        raise InvalidFieldError(
            "request_id", f"must have at most {_TEXT_CHARACTERS_MAX} characters"
        )
    return value


def run_token(value: str) -> str:
    """Return a run token; raises InvalidFieldError for what no header can carry."""
    if not _RUN_TOKEN.fullmatch(value):
        raise InvalidFieldError("run_token", "must be at most 16384 characters of ASCII")
    return value


def fresh_run_token(value: str) -> str:
    """Return a run token that there must be; raises InvalidFieldError."""
    if not value:
        raise InvalidFieldError("run_token", "is required")
    return run_token(value)


def session_options(request: wire.CreateSessionRequest, config: SandboxConfig) -> SessionOptions:
    """Return what a new session is to be."""
    if len(request.contexts) > _CONTEXTS_MAX:
        raise InvalidFieldError("contexts", f"must be at most {_CONTEXTS_MAX}")
    # Each is kept here for as long as the session, so they are bounded together.
    if sum(len(mount.documents) for mount in request.contexts) > _DOCUMENTS_MAX:
        raise InvalidFieldError("contexts", f"must have at most {_DOCUMENTS_MAX} documents")
    blobs = [_blob(f"contexts[{i}]", mount) for i, mount in enumerate(request.contexts)]
    names = [blob.mount.variable for blob in blobs]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidFieldError(f"contexts[{i}].variable", "must differ from the others'")
    return SessionOptions(
        limits=read_limits(request.limits, config),
        contexts=blobs,
        idle_ttl_s=_idle_ttl_s(request, config),
        run_token=run_token(request.run_token),
        sub_tier=_sub_tier(request.sub_tier) or DEFAULT_SUB_TIER,
        labels=labels(request.labels),
        profile=_profile(request.profile),
        determinism=_determinism(request),
    )


def checkpoint_key(key: str) -> str:
    """Return a checkpoint's key; raises InvalidFieldError for what is none."""
    if not is_checkpoint_key(key):
        raise InvalidFieldError("checkpoint_key", "must be the key of a checkpoint")
    return key


def checkpoint_owner(owner: str) -> str:
    """Return an owner of checkpoints; raises InvalidFieldError."""
    if not is_owner(owner):
        raise InvalidFieldError(
            "owner", "must be 1 to 128 letters, digits, hyphens and underscores"
        )
    return owner


def kept_keys(keys: Sequence[str]) -> Sequence[str]:
    """Return checkpoints to keep; raises InvalidFieldError."""
    if len(keys) > _KEPT_KEYS_MAX:
        raise InvalidFieldError("kept_keys", f"must have at most {_KEPT_KEYS_MAX} entries")
    for i, key in enumerate(keys):
        if not is_checkpoint_key(key):
            raise InvalidFieldError(f"kept_keys[{i}]", "must be the key of a checkpoint")
    return keys


def age_min_s(request: wire.DeleteCheckpointsRequest) -> float:
    """Return the age in seconds from which on checkpoints go; raises InvalidFieldError."""
    age_s = _seconds(request.age_min)
    if age_s < 0:
        raise InvalidFieldError("age_min", "must be 0 or more")
    return age_s


def _sub_tier(tier: str) -> str:
    if len(tier) > _TEXT_CHARACTERS_MAX:
        raise InvalidFieldError("sub_tier", f"must have at most {_TEXT_CHARACTERS_MAX} characters")
    return tier


def restored_options(
    request: wire.RestoreSessionRequest, manifest: Manifest, config: SandboxConfig
) -> SessionOptions:
    """Return what a session is to be that is made from a checkpoint."""
    asked = wire_limits(manifest.limits)
    asked.MergeFrom(request.limits)
    limits = read_limits(asked, config)
    if limits.memory_bytes_max < manifest.memory_bytes:
        raise InvalidFieldError(
            "limits.memory_bytes_max", f"the checkpoint has {manifest.memory_bytes} bytes of memory"
        )
    return SessionOptions(
        limits=limits,
        contexts=manifest.contexts,
        idle_ttl_s=_idle_ttl_s(request, config),
        run_token=run_token(request.run_token),
        sub_tier=_sub_tier(request.sub_tier) or manifest.sub_tier,
        labels=labels(request.labels),
        profile=manifest.profile,
        determinism=manifest.use.determinism,
    )


def execution_options(request: wire.ExecuteRequest, config: SandboxConfig) -> ExecutionOptions:
    """Return how a cell is to be run."""
    if not request.code:
        raise InvalidFieldError("code", "must not be empty")
    size_bytes = len(request.code.encode())
    if size_bytes > CODE_BYTES_MAX:
        raise InvalidFieldError("code", f"must be at most {CODE_BYTES_MAX} bytes, not {size_bytes}")
    # Room for the sequence number that each sub-call's request_id adds.
    if len(request.call_prefix) > _TEXT_CHARACTERS_MAX - 16:
        limit = _TEXT_CHARACTERS_MAX - 16
        raise InvalidFieldError("call_prefix", f"must have at most {limit} characters")
    if request.turn < 0:
        raise InvalidFieldError("turn", "must be 0 or larger")
    if request.random_stream < 0:
        raise InvalidFieldError("random_stream", "must be 0 or larger")
    return ExecutionOptions(
        code=request.code,
        call_prefix=request.call_prefix,
        turn=request.turn,
        report_variables=request.report_variables,
        check=cast("CheckMode", config.code_check),
        random_stream=request.random_stream,
        sub_calls_max=_sub_calls_max(request, config),
        failed_sub_calls=_failed_sub_calls(request),
        sub_tier=_sub_tier(request.sub_tier),
    )


def _sub_calls_max(request: wire.ExecuteRequest, config: SandboxConfig) -> int | None:
    if not request.HasField("sub_calls_max"):
        return None
    asked, ceiling = request.sub_calls_max, config.sub_calls_max
    if asked < 0:
        raise InvalidFieldError("sub_calls_max", "must be 0 or larger")
    if asked > ceiling:
        raise LimitAboveCeilingError("sub_calls_max", asked, ceiling)
    return asked


def _failed_sub_calls(request: wire.ExecuteRequest) -> dict[int, ServiceError]:
    if len(request.failed_sub_calls) > _FAILED_SUB_CALLS_MAX:
        raise InvalidFieldError("failed_sub_calls", f"must be at most {_FAILED_SUB_CALLS_MAX}")
    if any(each.sequence < 1 or not each.error.code for each in request.failed_sub_calls):
        raise InvalidFieldError("failed_sub_calls", "must have a sequence from 1, and an error")
    return {each.sequence: ReceivedError(each.error) for each in request.failed_sub_calls}


def _profile(name: str) -> str:
    """Return a profile; raises InvalidFieldError for one that is not offered."""
    if name and name not in PROFILES:
        raise InvalidFieldError("profile", f"must be one of {', '.join(PROFILES)}")
    return name or DEFAULT_PROFILE


def _determinism(request: wire.CreateSessionRequest) -> Determinism | None:
    if not request.HasField("determinism"):
        return None
    field, asked = "determinism.clock_time", request.determinism
    if not asked.HasField("clock_time"):
        raise InvalidFieldError(field, "is required")
    clock_ns = asked.clock_time.seconds * 10**9 + asked.clock_time.nanos
    if not 0 <= clock_ns < _CLOCK_NS_END or not 0 <= asked.clock_time.nanos < 10**9:
        raise InvalidFieldError(field, "must be from 1970 to 2200")
    return Determinism(clock_ns=clock_ns, seed=asked.seed)


def _idle_ttl_s(
    request: wire.CreateSessionRequest | wire.RestoreSessionRequest, config: SandboxConfig
) -> float:
    if not request.HasField("idle_ttl"):
        return config.session_idle_ttl_s
    ttl_s = _seconds(request.idle_ttl)
    if ttl_s <= 0:
        raise InvalidFieldError("idle_ttl", "must be above 0")
    if ttl_s > config.session_idle_ttl_max_s:
        ceiling = f"{config.session_idle_ttl_max_s:g} s"
        raise LimitAboveCeilingError("idle_ttl", f"{ttl_s:g} s", ceiling)
    return ttl_s


def labels(asked: Mapping[str, str]) -> dict[str, str]:
    """Return a session's labels; raises InvalidFieldError for too many or too long ones."""
    if len(asked) > _LABELS_MAX:
        raise InvalidFieldError("labels", f"must be at most {_LABELS_MAX}")
    for key, value in asked.items():
        if not key or max(len(key), len(value)) > _TEXT_CHARACTERS_MAX:
            limit = _TEXT_CHARACTERS_MAX
            raise InvalidFieldError("labels", f"keys have 1, values 0 to {limit} characters")
    return dict(asked)


def _blob(field: str, mount: session_pb2.ContextMount) -> ContextBlob:
    variable = mount.variable
    if not variable.isidentifier() or keyword.iskeyword(variable) or len(variable) > 256:
        raise InvalidFieldError(f"{field}.variable", "must be a Python identifier")
    if variable in PROVIDED_NAMES or variable.startswith("__"):
        raise InvalidFieldError(f"{field}.variable", f"{variable} is a name of the session's own")
    if mount.kind not in _KINDS:
        raise InvalidFieldError(f"{field}.kind", "must be text, documents or JSON")
    if not is_key(mount.blob_key) or mount.blob_key.startswith(OWN_PREFIXES):
        raise InvalidFieldError(f"{field}.blob_key", "must be the key of a context's blob")
    if mount.size_bytes < 0:
        raise InvalidFieldError(f"{field}.size_bytes", "must be 0 or larger")
    blob_bytes = mount.blob_bytes or mount.size_bytes
    if not 0 <= mount.offset_bytes <= blob_bytes - mount.size_bytes:
        raise InvalidFieldError(f"{field}.offset_bytes", "must be within the blob")
    kind = _KINDS[mount.kind]
    if kind == "json" and blob_bytes != mount.size_bytes:
        raise InvalidFieldError(f"{field}.blob_bytes", "must be unset for KIND_JSON")
    return ContextBlob(
        mount=Mount(variable=variable, kind=kind, texts=_texts(field, mount, blob_bytes)),
        key=mount.blob_key,
        size_bytes=blob_bytes,
    )


def _texts(field: str, mount: session_pb2.ContextMount, blob_bytes: int) -> list[Text]:
    if mount.kind != session_pb2.ContextMount.KIND_DOCUMENTS:
        if mount.documents:
            raise InvalidFieldError(f"{field}.documents", "must be empty unless of KIND_DOCUMENTS")
        shape, offset = mount.text_shape, mount.offset_bytes
        return [_text(f"{field}.text_shape", "", offset, mount.size_bytes, shape)]
    texts, names = [], set()
    for i, document in enumerate(mount.documents):
        place = f"{field}.documents[{i}]"
        offset, size = document.offset_bytes, document.size_bytes
        if offset < mount.offset_bytes or size < 0 or offset + size > blob_bytes:
            raise InvalidFieldError(place, "must be a range of bytes within the blob")
        if document.name in names:
            raise InvalidFieldError(f"{place}.name", "must be unique in the context")
        names.add(document.name)
        shape = document.text_shape
        texts.append(_text(f"{place}.text_shape", document.name, offset, size, shape))
    _require_apart(field, texts)
    return texts


def _require_apart(field: str, texts: list[Text]) -> None:
    """Refuse documents that overlap: each byte of a blob is counted and loaded once."""
    in_order = sorted((text for text in texts if text.size_bytes), key=lambda t: t.offset_bytes)
    for text, following in itertools.pairwise(in_order):
        if text.offset_bytes + text.size_bytes > following.offset_bytes:
            names = f"{text.name[:80]!r} and {following.name[:80]!r}"
            raise InvalidFieldError(f"{field}.documents", f"{names} overlap")


def _text(
    field: str, name: str, offset_bytes: int, size_bytes: int, shape: session_pb2.TextShape
) -> Text:
    if not 0 <= shape.characters <= size_bytes:
        raise InvalidFieldError(f"{field}.characters", "must be from 0 to the text's bytes")
    if not 0 <= shape.code_point_max <= 0x10FFFF:
        raise InvalidFieldError(f"{field}.code_point_max", "must be a code point")
    return Text(
        name=name,
        offset_bytes=offset_bytes,
        size_bytes=size_bytes,
        characters=shape.characters,
        code_point_max=shape.code_point_max,
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
