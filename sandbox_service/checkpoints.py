"""Checkpoints: sessions in the object store, as layers named by their content and a manifest.

A checkpoint's key is made from its manifest, within the folder of its owner, who shares nothing
with others. There are no secrets in it: no run token, and no labels.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
import os
import re
import time
from collections.abc import Collection
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from common.errors import NotFoundError
from sandbox_service import layer_store
from sandbox_service.context_mounts import ContextBlob
from sandbox_service.errors import (
    CheckpointDamagedError,
    CheckpointIncompatibleError,
    ObjectStoreAwayError,
)
from sandbox_service.frames import Name
from sandbox_service.guest_memory import WASM_PAGE_BYTES
from sandbox_service.layer_store import LayerStore, StoredLayer
from sandbox_service.limits import Limits
from sandbox_service.objects import (
    FoundObject,
    ObjectError,
    ObjectMissingError,
    ObjectsAwayError,
    ObjectStore,
)
from sandbox_service.profiles import PROFILES
from sandbox_service.session_memory import Layer, SessionMemory
from sandbox_service.session_options import SessionOptions, SessionUse

_KEY = re.compile(r"(checkpoints(?:/of/[A-Za-z0-9_-]{1,128})?)/[0-9a-f]{64}")
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,128}")
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


class _LayersOnly(Struct, frozen=True, kw_only=True):
    """What a manifest says of its layers."""

    layers: list[StoredLayer]


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
        self, options: SessionOptions, use: SessionUse, memory: SessionMemory, owner: str = ""
    ) -> Checkpoint:
        """Store a session as of a copy of its memory; raises ObjectError, or LayerDamagedError
        where what was evicted of it is damaged."""
        taken_at = time.time()
        folder = folder_of(owner)
        await memory.bring_back(self._layers, options.limits.memory_bytes_max)
        kept = await memory.keep(self._layers, folder)
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
        key = _key_of(data, folder)
        await asyncio.to_thread(self._write, key, data)
        size_bytes = len(data) + sum(size_bytes for _, size_bytes in kept)
        return Checkpoint(key=key, size_bytes=size_bytes, taken_at=taken_at, manifest=manifest)

    async def load(self, key: str) -> Manifest:
        """Return a checkpoint's manifest.

        Raises NotFoundError, CheckpointDamagedError, CheckpointIncompatibleError or
        ObjectStoreAwayError.
        """
        manifest = self._decoded(key, await asyncio.to_thread(self._read, key))
        if manifest.profile not in PROFILES:
            known = ", ".join(PROFILES)
            raise CheckpointIncompatibleError(key, "profile", known, manifest.profile)
        if sum(layer.data_bytes for layer in manifest.layers) > 2 * manifest.memory_bytes:
            raise CheckpointDamagedError(key, "its layers are larger than its memory")
        return manifest

    def memory_of(self, key: str, manifest: Manifest) -> SessionMemory:
        """Return the memory of a checkpointed session, still in the store."""
        folder = _folder_in(key)
        layers = [
            Layer(None, stored, layer_store.key_of(stored, folder)) for stored in manifest.layers
        ]
        return SessionMemory(layers, manifest.memory_bytes)

    async def delete(self, owner: str, kept_keys: Collection[str], *, age_min_s: float) -> int:
        """Delete an owner's checkpoints and what only they needed, but for those that are named
        and what was stored less long ago; return how many objects that were. Raises ObjectError.
        """
        before = time.time() - age_min_s if age_min_s else math.inf
        return await asyncio.to_thread(self._delete, folder_of(owner), frozenset(kept_keys), before)

    def _write(self, key: str, data: bytes) -> None:
        with self._objects.writer() as writer:
            writer.write(data)
            writer.commit(key)

    def _read(self, key: str) -> bytes:
        try:
            data = self._content(key)
        except ObjectMissingError:
            raise NotFoundError(key) from None
        except ObjectsAwayError as error:
            raise ObjectStoreAwayError from error
        except ObjectError as error:
            raise CheckpointDamagedError(key, str(error)) from error
        if len(data) > _MANIFEST_BYTES_MAX or key != _key_of(data, _folder_in(key)):
            raise CheckpointDamagedError(key, "its manifest is not what its key says")
        return data

    def _delete(self, folder: str, kept_keys: frozenset[str], before: float) -> int:
        # Manifests go first: whatever is broken off leaves none that lacks a layer.
        layers: list[FoundObject] = []
        needed: set[str] = set()
        deleted = 0
        for found in list(self._objects.found(folder)):
            if _KEY.fullmatch(found.key) is None:
                layers.append(found)
            elif found.key in kept_keys or found.stored_at > before:
                needed |= self._layer_keys(found.key)
            else:
                self._objects.delete(found.key)
                deleted += 1
        for layer in layers:
            if layer.key not in needed and layer.stored_at <= before:
                self._objects.delete(layer.key)
                deleted += 1
        return deleted

    def _layer_keys(self, key: str) -> set[str]:
        """Return the keys of a checkpoint's layers, of any guest's; none of one that is damaged,
        which nobody can restore."""
        folder = _folder_in(key)
        try:
            data = self._content(key)
            if key != _key_of(data, folder):
                return set()
            manifest = msgspec.json.decode(data, type=_LayersOnly)
        except (ObjectMissingError, msgspec.DecodeError):
            return set()
        return {layer_store.key_of(layer, folder) for layer in manifest.layers}

    def _content(self, key: str) -> bytes:
        with os.fdopen(self._objects.open(key), "rb") as file:
            return file.read(_MANIFEST_BYTES_MAX + 1)

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


def is_owner(text: str) -> bool:
    """Tell whether a text has the form of an owner's name."""
    return _OWNER.fullmatch(text) is not None


def folder_of(owner: str) -> str:
    """Return the folder of keys that an owner's checkpoints are in; of nobody's, where empty."""
    return f"checkpoints/of/{owner}" if owner else "checkpoints"


def _folder_in(key: str) -> str:
    return key.rpartition("/")[0]


def _key_of(data: bytes, folder: str) -> str:
    return f"{folder}/{hashlib.sha256(data).hexdigest()}"
