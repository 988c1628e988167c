"""Checkpoints: sessions in the object store, as layers named by their content and a manifest.

A checkpoint's key is made from its manifest. There are no secrets in it: no run token, and no
labels.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from common.errors import NotFoundError
from sandbox_service.context_mounts import ContextBlob
from sandbox_service.engine import WASM_PAGE_BYTES
from sandbox_service.errors import CheckpointDamagedError, CheckpointIncompatibleError
from sandbox_service.frames import Name
from sandbox_service.layer_store import LayerStore, StoredLayer
from sandbox_service.limits import Limits
from sandbox_service.objects import ObjectError, ObjectMissingError, ObjectStore
from sandbox_service.profiles import PROFILES
from sandbox_service.session_memory import Layer, SessionMemory
from sandbox_service.session_options import SessionOptions, SessionUse

_KEY = re.compile(r"checkpoints/([0-9a-f]{64})")
_MANIFEST_BYTES_MAX = 64 << 20
"""A context of many documents is described in it."""
_LAYERS_MAX = 16
_MEMORY_BYTES_MAX = 4 << 30
FORM = 1
"""Version of the manifest's form, and of the layers' below it."""


class _Head(Struct, frozen=True, kw_only=True):
    """What a manifest of any form begins with."""

    form: int
    guest_digest: Name


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint is made of."""

    form: int = FORM
    """Version of this form."""
    guest_digest: Name
    """The guest build, engine included."""
    profile: Name
    """The warm image below the layers."""
    memory_bytes: Annotated[int, Meta(ge=0, le=_MEMORY_BYTES_MAX, multiple_of=WASM_PAGE_BYTES)]
    """Size of the linear memory."""
    layers: Annotated[list[StoredLayer], Meta(max_length=_LAYERS_MAX)]
    """Finished layers, lowest first."""
    contexts: list[ContextBlob]
    """What was mounted: those that are read by reference are needed again."""
    limits: Limits
    """The session's limits."""
    sub_tier: Annotated[str, Meta(max_length=256)]
    """What a sub-call asks where the code names nothing."""
    use: SessionUse
    """What the session had done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A stored checkpoint."""

    key: str
    """Key of its manifest."""
    size_bytes: int
    """Compressed size of all that it needs."""
    taken_at: float
    """Unix time, seconds; no part of what is stored."""
    manifest: Manifest
    """What it is made of."""


class CheckpointStore:
    """Checkpoints by key."""

    def __init__(self, objects: ObjectStore, guest_digest: str) -> None:
        """Keep checkpoints of sessions of one guest build."""
        self._objects = objects
        self._layers = LayerStore(objects)
        self._guest_digest = guest_digest

    async def save(
        self, options: SessionOptions, use: SessionUse, memory: SessionMemory
    ) -> Checkpoint:
        """Store a session as of a copy of its memory; raises ObjectError, or LayerDamagedError
        where what was evicted of it is damaged."""
        taken_at = time.time()
        await memory.bring_back(self._layers, options.limits.memory_bytes_max)
        kept = await memory.keep(self._layers)
        manifest = Manifest(
            guest_digest=self._guest_digest,
            profile=options.profile,
            memory_bytes=memory.memory_bytes,
            layers=[stored for stored, _ in kept],
            contexts=list(options.contexts),
            limits=options.limits,
            sub_tier=options.sub_tier,
            use=use,
        )
        data = msgspec.json.encode(manifest, order="deterministic")
        key = _key_of(data)
        await asyncio.to_thread(self._write, key, data)
        size_bytes = len(data) + sum(size_bytes for _, size_bytes in kept)
        return Checkpoint(key=key, size_bytes=size_bytes, taken_at=taken_at, manifest=manifest)

    async def load(self, key: str) -> Manifest:
        """Return a checkpoint's manifest.

        Raises NotFoundError, CheckpointDamagedError or CheckpointIncompatibleError.
        """
        manifest = self._decoded(key, await asyncio.to_thread(self._read, key))
        if manifest.profile not in PROFILES:
            known = ", ".join(PROFILES)
            raise CheckpointIncompatibleError(key, "profile", known, manifest.profile)
        if sum(layer.data_bytes for layer in manifest.layers) > 2 * manifest.memory_bytes:
            raise CheckpointDamagedError(key, "its layers are larger than its memory")
        return manifest

    def memory_of(self, manifest: Manifest) -> SessionMemory:
        """Return the memory of a checkpointed session, still in the store."""
        layers: Sequence[Layer] = [Layer(None, stored) for stored in manifest.layers]
        return SessionMemory(layers, manifest.memory_bytes)

    def _write(self, key: str, data: bytes) -> None:
        with self._objects.writer() as writer:
            writer.write(data)
            writer.commit(key)

    def _read(self, key: str) -> bytes:
        try:
            fd = self._objects.open(key)
        except ObjectMissingError:
            raise NotFoundError(key) from None
        except ObjectError as error:
            raise CheckpointDamagedError(key, str(error)) from error
        with os.fdopen(fd, "rb") as file:
            data = file.read(_MANIFEST_BYTES_MAX + 1)
        if len(data) > _MANIFEST_BYTES_MAX or key != _key_of(data):
            raise CheckpointDamagedError(key, "its manifest is not what its key says")
        return data

    def _decoded(self, key: str, data: bytes) -> Manifest:
        try:
            head = msgspec.json.decode(data, type=_Head)
            if head.form != FORM:
                raise CheckpointIncompatibleError(key, "form", str(FORM), str(head.form))
            if head.guest_digest != self._guest_digest:
                raise CheckpointIncompatibleError(
                    key, "guest_digest", self._guest_digest, head.guest_digest
                )
            return msgspec.json.decode(data, type=Manifest)
        except (msgspec.DecodeError, RecursionError) as error:
            raise CheckpointDamagedError(key, f"its manifest does not decode: {error}") from error


def is_checkpoint_key(key: str) -> bool:
    """Tell whether a text has the form of a checkpoint's key."""
    return _KEY.fullmatch(key) is not None


def _key_of(data: bytes) -> str:
    return f"checkpoints/{hashlib.sha256(data).hexdigest()}"
