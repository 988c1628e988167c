"""Checkpoints: sessions in the object store, restored by another service, or refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sandbox_service.objects import FolderObjects, ObjectsAwayError
from tests.support.eventually import eventually
from tests.support.sandbox import Sandbox, guest, sandbox
from tests.support.sandbox_calls import refused

pytestmark = pytest.mark.guest


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


def layers(objects: Path) -> set[str]:
    return {path.name for path in (objects / "checkpoints/layers").iterdir()}


async def test_a_checkpoint_is_restored_by_another_service(tmp_path: Path) -> None:
    """Everything that it needs is in the object store."""
    async with sandbox(guest(), tmp_path) as box:
        name = await box.create(contexts=[box.text(b"hello " * 1000)], labels={"run": "r1"})
        await box.run(name, "class A: pass\na = A()\na.b = context.count('hello')")
        before = await box.session(name)
        checkpoint = await box.checkpoint(name)
        assert (await box.session(name)).checkpoint_key == checkpoint.key

    async with sandbox(guest(), tmp_path) as box:
        name = await box.restore(checkpoint.key, labels={"run": "r2"})
        session = await box.session(name)

        assert (await box.run(name, "a.b, context[:5], type(a).__name__")).out == (
            "(1000, 'hello', 'A')\n"
        )
        assert session.labels == {"run": "r2"}
        assert session.checkpoint_key == checkpoint.key
        assert session.limits == before.limits
        assert (session.executions, session.memory_bytes) == (1, before.memory_bytes)


async def test_a_checkpoint_describes_itself(box: Sandbox, tmp_path: Path) -> None:
    name = await box.create(profile="numpy")
    await box.run(name, "x = 1")

    checkpoint = await box.checkpoint(name)

    assert checkpoint.guest_digest == guest().digest
    assert (checkpoint.executions, checkpoint.profile) == (1, "numpy")
    stored = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert checkpoint.size_bytes == sum(path.stat().st_size for path in stored)
    assert checkpoint.create_time.seconds > 1_600_000_000
    assert (await box.run(await box.restore(checkpoint.key), "x")).out == "1\n"


async def test_a_session_goes_on_after_its_checkpoint(box: Sandbox) -> None:
    """And what it does then is not in it."""
    name = await box.create()
    await box.run(name, "x = [1]")
    checkpoint = await box.checkpoint(name)

    await box.run(name, "x.append(2)")

    assert (await box.run(name, "x")).out == "[1, 2]\n"
    restored = [await box.restore(checkpoint.key) for _ in range(2)]
    for each in restored:
        assert (await box.run(each, "x.append(3); x")).out == "[1, 3]\n"


async def test_equal_content_has_an_equal_key(box: Sandbox, tmp_path: Path) -> None:
    name = await box.create()
    await box.run(name, "x = 1")

    first = await box.checkpoint(name)
    stored = layers(tmp_path)
    again = await box.checkpoint(name)

    assert (again.key, again.size_bytes) == (first.key, first.size_bytes)
    assert layers(tmp_path) == stored
    await box.run(name, "x = 2")
    assert (await box.checkpoint(name)).key != first.key


async def test_checkpoints_share_the_layers_that_did_not_change(
    box: Sandbox, tmp_path: Path
) -> None:
    """The context is stored once, however many checkpoints and forks there are."""
    name = await box.create(contexts=[box.text(os.urandom(10_000_000).hex().encode())])
    first = await box.checkpoint(name)
    stored = layers(tmp_path)
    await box.run(name, "x = 1")
    await box.checkpoint(name)
    await box.checkpoint(await box.fork(name))

    assert stored < layers(tmp_path)
    added = [tmp_path / "checkpoints/layers" / layer for layer in layers(tmp_path) - stored]
    assert sum(path.stat().st_size for path in added) < first.size_bytes / 5


async def test_a_restored_session_goes_on_from_what_was_used(box: Sandbox) -> None:
    """Limits of a session are not got around by restoring it."""
    name = await box.create(limits=session_pb2.SessionLimits(sub_calls_max=1))
    await box.run(name, "llm_query('a')")

    restored = await box.restore((await box.checkpoint(name)).key, run_token="t")

    ran = await box.run(restored, "llm_query('b')")
    assert ran.result.error.type == "LimitExceededError"
    assert ran.events[0].start.execution == 2


async def test_there_is_no_secret_in_a_checkpoint(box: Sandbox, tmp_path: Path) -> None:
    name = await box.create(run_token="very-secret-token", labels={"note": "very-private-label"})
    await box.run(name, "llm_query('x')")

    key = (await box.checkpoint(name)).key

    manifest = (tmp_path / key).read_bytes()
    assert b"very-" not in manifest
    assert "no run token" in (await box.run(await box.restore(key), "llm_query('x')")).err


async def test_a_fixed_clock_goes_on_where_it_was(box: Sandbox) -> None:
    """What a restored session computes is what the first one would have."""
    fixed = wire.Determinism(clock_time=Timestamp(seconds=1_000_000_000), seed=7)
    name = await box.create(determinism=fixed)
    await box.run(name, "import time, random\nfrom time import sleep\nrandom.random(); sleep(5)")
    key = (await box.checkpoint(name)).key
    copy = await box.fork(name)
    code = "time.time(), random.random(), __import__('uuid').uuid4()"

    outs = [(await box.run(each, code)).out for each in (name, copy, await box.restore(key))]

    assert outs[0] == outs[1] == outs[2]
    assert outs[0].startswith("(1000000005.")


async def test_limits_may_be_others(box: Sandbox) -> None:
    name = await box.create(limits=session_pb2.SessionLimits(sub_calls_max=1, fuel_max=10**9))
    key = (await box.checkpoint(name)).key

    limits = session_pb2.SessionLimits(sub_calls_max=2)
    began_s = time.monotonic()
    restored = await box.session(
        await box.restore(key, limits=limits, idle_ttl=Duration(seconds=60))
    )

    assert (restored.limits.sub_calls_max, restored.limits.fuel_max) == (2, 10**9)
    left = restored.expire_time.ToDatetime() - restored.create_time.ToDatetime()
    assert 59 < left.total_seconds() < 61 + time.monotonic() - began_s


async def test_limits_below_the_checkpoints_memory_are_refused(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = bytearray(100_000_000)")
    key = (await box.checkpoint(name)).key
    too_small = session_pb2.SessionLimits(memory_bytes_max=64 << 20)
    enough = session_pb2.SessionLimits(memory_bytes_max=(await box.session(name)).memory_bytes)

    code, reason, metadata = await refused(box.restore(key, limits=too_small))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata == {"field": "limits.memory_bytes_max"}
    assert (await box.run(await box.restore(key, limits=enough), "len(x)")).out == "100000000\n"


async def test_limits_above_this_hosts_ceilings_are_refused(tmp_path: Path) -> None:
    """Also those that the checkpoint brings along."""
    async with sandbox(guest(), tmp_path) as box:
        name = await box.create(limits=session_pb2.SessionLimits(sub_calls_max=20_000))
        key = (await box.checkpoint(name)).key
    async with sandbox(guest(), tmp_path, sub_calls_max=10_000) as box:
        code, reason, metadata = await refused(box.restore(key))

        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_ABOVE_CEILING")
        assert metadata["field"] == "limits.sub_calls_max"
        limits = session_pb2.SessionLimits(sub_calls_max=10_000)
        await box.restore(key, limits=limits)


async def test_a_store_that_is_away_is_told_as_that_and_as_no_damage(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hears so asks again later; what is damaged or full is given up, and runs with it."""
    name, context = await box.create(), box.text(b"some text")
    await box.run(name, "x = 1")
    key = (await box.checkpoint(name)).key
    await box.run(name, "x = 2")

    def away(*_: object) -> None:
        raise ObjectsAwayError("it does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(FolderObjects, "open", away)
        patched.setattr(FolderObjects, "writer", away)
        calls = (box.restore(key), box.create(contexts=[context]), box.checkpoint(name))
        errors = [await refused(call) for call in calls]

    assert errors == [(grpc.StatusCode.UNAVAILABLE, "OBJECT_STORE_UNAVAILABLE", {})] * 3
    assert (await box.run(await box.restore(key), "x")).out == "1\n"


async def test_a_checkpoint_that_is_not_there_is_not_found(box: Sandbox) -> None:
    key = "checkpoints/" + "0" * 64

    code, reason, metadata = await refused(box.restore(key))

    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert metadata == {"resource": key}


@pytest.mark.parametrize("key", ["", "contexts/1", "checkpoints/../x", "checkpoints/" + "0" * 63])
async def test_a_key_that_is_none_is_refused(box: Sandbox, key: str) -> None:
    code, reason, metadata = await refused(box.restore(key))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata == {"field": "checkpoint_key"}


def stored_manifest(objects: Path, key: str, **changes: Any) -> str:
    """Store a changed manifest under the key that its content asks for."""
    manifest = json.loads((objects / key).read_bytes()) | changes
    data = json.dumps(manifest).encode()
    changed = f"checkpoints/{hashlib.sha256(data).hexdigest()}"
    (objects / changed).write_bytes(data)
    return changed


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"guest_digest": "another"}, "guest_digest"),
        ({"profile": "another"}, "profile"),
        ({"form": 2, "more": "than we know"}, "form"),
    ],
)
async def test_a_checkpoint_of_another_guest_is_incompatible(
    box: Sandbox, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    """Its pages would lie over a memory that they were not made for."""
    key = (await box.checkpoint(await box.create())).key
    other = stored_manifest(tmp_path, key, **changes)

    code, reason, metadata = await refused(box.restore(other))

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_INCOMPATIBLE")
    assert (metadata["checkpoint"], metadata["field"]) == (other, field)
    assert metadata["actual"] == str(changes[field])
    assert metadata["expected"]


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": 1 << 40},
        {"memory_bytes": 4097},
        {"memory_bytes": 0},
        {"layers": [{"digest": "../../etc/passwd", "data_bytes": 4096}]},
        {"layers": [{"digest": "0" * 64, "data_bytes": 1 << 40}]},
        {"layers": [{"digest": "0" * 64, "data_bytes": 4096}] * 17},
        {"layers": [{"digest": "0" * 64, "data_bytes": 4096}]},
        {"unknown": 1},
        {"use": None},
    ],
)
async def test_a_manifest_that_makes_no_sense_is_damage(
    box: Sandbox, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Its key is right: whoever wrote it may be anybody who can write to the object store."""
    name = await box.create()
    await box.run(name, "x = 1")
    other = stored_manifest(tmp_path, (await box.checkpoint(name)).key, **changes)

    code, reason, metadata = await refused(box.restore(other))

    assert (code, reason) == (grpc.StatusCode.DATA_LOSS, "CHECKPOINT_DAMAGED")
    assert metadata["checkpoint"] == other
    assert metadata["problem"]
    assert len(box.table) == 1


async def test_a_damaged_checkpoint_is_refused_and_taking_it_again_mends_it(
    box: Sandbox, tmp_path: Path
) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    key = (await box.checkpoint(name)).key
    (layer,) = (tmp_path / "checkpoints/layers").iterdir()
    whole = layer.read_bytes()

    async def problem() -> str:
        code, reason, metadata = await refused(box.restore(key))
        assert (code, reason) == (grpc.StatusCode.DATA_LOSS, "CHECKPOINT_DAMAGED")
        return metadata["problem"]

    layer.write_bytes(whole[:-100])
    assert "layer" in await problem()
    layer.write_bytes(whole[:500] + b"?" + whole[501:])
    assert "layer" in await problem()
    layer.unlink()
    assert "missing" in await problem()
    (tmp_path / key).write_bytes((tmp_path / key).read_bytes() + b" ")
    assert "manifest" in await problem()

    assert (await box.checkpoint(name)).key == key
    assert (await box.run(await box.restore(key), "x")).out == "1\n"


async def test_a_context_by_reference_is_needed_again(tmp_path: Path) -> None:
    async with sandbox(guest(), tmp_path, lazy_context_bytes_min=1 << 20) as box:
        text = box.text(b"some line\n" * 300_000)
        name = await box.create(contexts=[text])
        await box.run(name, "n = len(context)")
        assert (await box.session(name)).lazy_variables == ["context"]
        key = (await box.checkpoint(name)).key

    # Whatever the next host would decide, the variable stays what it is.
    async with sandbox(guest(), tmp_path, lazy_context_bytes_min=1 << 30) as box:
        name = await box.restore(key)
        assert (await box.session(name)).lazy_variables == ["context"]
        ran = await box.run(name, "n, len(context), context[-5:]")
        assert ran.out == "(3000000, 3000000, 'line\\n')\n"

        (tmp_path / text.blob_key).unlink()
        code, reason, metadata = await refused(box.restore(key))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTEXT_UNREADABLE")
        assert metadata["context"] == "context"


async def test_a_context_in_memory_is_not_needed_again(box: Sandbox, tmp_path: Path) -> None:
    text = box.text(b"in memory")
    key = (await box.checkpoint(await box.create(contexts=[text]))).key
    (tmp_path / text.blob_key).unlink()

    assert (await box.run(await box.restore(key), "context")).out == "'in memory'\n"


async def test_a_lost_workers_session_is_checkpointed_all_the_same(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    await eventually(lambda: box.table.find(name).is_saved)
    (pid,) = box.worker_pids()
    os.kill(pid, signal.SIGKILL)

    checkpoint = await box.checkpoint(name)

    assert (await box.run(await box.restore(checkpoint.key), "x")).out == "1\n"


async def test_a_busy_session_is_not_checkpointed(box: Sandbox) -> None:
    name = await box.create()
    call = box.stub.Execute(wire.ExecuteRequest(name=name, code="llm_query('hold')"), timeout=30)
    running = asyncio.create_task(call.read())
    await asyncio.wait_for(box.gateway.held.wait(), 30)

    code, reason, metadata = await refused(box.checkpoint(name))

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    assert metadata == {"session": name}
    await running
    call.cancel()


async def test_repeating_a_request_id_restores_once(box: Sandbox) -> None:
    key = (await box.checkpoint(await box.create())).key

    both = await asyncio.gather(*[box.restore(key, request_id="a") for _ in range(2)])

    assert both[0] == both[1]
    code, reason, _ = await refused(box.restore(key, request_id="a", labels={"k": "v"}))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_REUSED")


async def test_a_checkpoint_is_whole_before_it_has_its_name(box: Sandbox, tmp_path: Path) -> None:
    """A reader never sees half of one, nor is anything left of the writing."""
    name = await box.create()
    await box.checkpoint(name)

    assert not list((tmp_path / ".partial").iterdir())


@pytest.mark.parametrize(("asked", "tier"), [("", "models/tiny"), ("models/large", "models/large")])
async def test_a_restored_session_asks_the_tier_that_it_is_given(
    box: Sandbox, asked: str, tier: str
) -> None:
    """A later run may have other models than the one that the session comes from."""
    name = await box.create(sub_tier="models/tiny")
    checkpoint = await box.checkpoint(name)

    restored = await box.restore(checkpoint.key, run_token="token", sub_tier=asked)
    await box.run(restored, "llm_query('a')")

    assert [request.prompt.tier for request in box.gateway.requests] == [tier]


async def test_deleting_an_owners_checkpoints_leaves_those_that_are_kept(
    box: Sandbox, tmp_path: Path
) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    first = (await box.checkpoint(name, "run-1")).key
    await box.run(name, "x = 2")
    second = (await box.checkpoint(name, "run-1")).key
    assert (await box.checkpoint(name, "run-2")).key != second

    assert await box.delete_checkpoints("run-1", second) == 1

    assert (await refused(box.restore(first)))[0] is grpc.StatusCode.NOT_FOUND
    assert (await box.run(await box.restore(second), "x")).out == "2\n"
    await box.delete_checkpoints("run-1")
    assert not (tmp_path / "checkpoints/of/run-1").exists()
    assert (await refused(box.restore(second)))[0] is grpc.StatusCode.NOT_FOUND
    assert (tmp_path / "checkpoints/of/run-2").exists()


async def test_a_session_goes_on_whose_checkpoints_were_deleted(box: Sandbox) -> None:
    """And can be stored again, also by another owner."""
    name = await box.create()
    await box.run(name, "x = 1")
    key = (await box.checkpoint(name, "run-1")).key
    restored = await box.restore(key)
    assert (await box.run(restored, "x")).out == "1\n"

    await box.delete_checkpoints("run-1")

    for session, owner in ((name, "run-1"), (restored, "run-2")):
        again = await box.checkpoint(session, owner)
        assert (await box.run(await box.restore(again.key), "x")).out == "1\n"


@pytest.mark.parametrize("owner", ["", "a/b", "..", "layers/x", "a" * 129, "ä"])
async def test_an_owner_that_is_none_is_refused(box: Sandbox, owner: str) -> None:
    """It becomes a folder."""
    code, reason, metadata = await refused(box.delete_checkpoints(owner))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata["field"] == "owner"


async def test_keys_to_keep_and_the_age_are_checked(box: Sandbox) -> None:
    for call, field in (
        (box.delete_checkpoints("a", "blobs/x"), "kept_keys[0]"),
        (box.delete_checkpoints("a", *["checkpoints/" + "0" * 64] * 10_001), "kept_keys"),
        (box.delete_checkpoints("a", age_min=Duration(seconds=-1)), "age_min"),
    ):
        code, _, metadata = await refused(call)
        assert (code, metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert await box.delete_checkpoints("a", *["checkpoints/" + "0" * 64] * 10_000) == 0
