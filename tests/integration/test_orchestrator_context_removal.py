"""Contexts that are deleted, expire, or were never finished: nothing of them is left, and nothing
else goes with them.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom_client.errors import ResourceExhaustedError
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import func, select, update

from orchestrator import tables
from orchestrator.contexts.removal import Removal
from orchestrator.contexts.stored_blobs import StoredBlobs
from orchestrator.contexts.upload_store import UploadStore
from orchestrator.errors import ObjectStoreError
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from tests.support.contexts import ContextStack, context_service, refused, text_messages
from tests.support.orchestrator import TIMEOUT_S, chunk, document, start
from tests.support.postgres import PostgresServer

TEXT, DOCUMENTS = Context.KIND_TEXT, Context.KIND_DOCUMENTS
LARGE = b"a line of text\n" * 400_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def stack(
    tmp_path: Path, postgres: PostgresServer, request: pytest.FixtureRequest
) -> AsyncIterator[ContextStack]:
    url = postgres.new_database() if request.param == "postgresql" else ""
    async with context_service(tmp_path, database_url=url) as running:
        yield running


def files(stack: ContextStack) -> list[str]:
    objects = stack.folder / "objects"
    return sorted(str(p.relative_to(objects)) for p in objects.rglob("*") if p.is_file())


async def rows(stack: ContextStack) -> dict[str, int]:
    """Rows of every table that an upload writes to, and bytes that count as stored."""
    counted = {}
    async with stack.database.reading() as connection:
        for name in ("contexts", "documents", "blobs", "uploads", "upload_documents"):
            query = select(func.count()).select_from(tables.metadata.tables[name])
            counted[name] = await connection.scalar(query) or 0
        used = select(func.coalesce(func.sum(tables.storage_use.c.size_bytes), 0))
        counted["stored"] = await connection.scalar(used) or 0
    return counted


NOTHING = dict.fromkeys(
    ("contexts", "documents", "blobs", "uploads", "upload_documents", "stored"), 0
)


async def make_run(stack: ContextStack, context: Context) -> RunRecord:
    record = RunRecord.queued(RunSpec(question="q", context=context.name))
    await RunStore(stack.database).create("default", record, record.state_event(), None)
    return record


async def set_state(stack: ContextStack, record: RunRecord, state: Run.State.ValueType) -> None:
    async with stack.database.writing() as connection:
        await connection.execute(
            update(tables.runs).where(tables.runs.c.run_id == record.run_id).values(state=state)
        )


async def test_a_deleted_context_leaves_nothing(stack: ContextStack) -> None:
    """Neither bytes, nor their index, nor names of documents."""
    kept = await stack.upload(
        start(DOCUMENTS),
        document("secret.txt"),
        *(chunk(LARGE[i : i + (1 << 20)], i) for i in range(0, len(LARGE), 1 << 20)),
    )
    assert [name.partition("/")[0] for name in files(stack)] == ["blobs", "indexes"]

    await stack.delete(kept.context.name)

    assert files(stack) == []
    assert await rows(stack) == NOTHING
    gone = await refused(stack.read(kept.context.name))
    assert gone.code is grpc.StatusCode.NOT_FOUND


async def test_bytes_that_another_context_has_stay(stack: ContextStack) -> None:
    text = await stack.upload_text(b"[1, 2]")
    json = (await stack.upload(start(Context.KIND_JSON), chunk(b"[1, 2]", 0))).context
    assert len(files(stack)) == 1

    await stack.delete(text.name)

    assert await stack.read(json.name) == b"[1, 2]"
    await stack.delete(json.name)
    assert files(stack) == []
    assert await rows(stack) == NOTHING


async def test_a_context_that_an_unfinished_run_uses_stays(stack: ContextStack) -> None:
    context = await stack.upload_text(b"abc")
    record = await make_run(stack, context)

    error = await refused(stack.delete(context.name))

    assert (error.code, error.reason, error.metadata) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        ErrorReason.ERROR_REASON_CONTEXT_IN_USE,
        {"context": context.name, "run": f"runs/{record.run_id}"},
    )
    assert await stack.read(context.name) == b"abc"
    await set_state(stack, record, Run.STATE_ANSWERED)
    await stack.delete(context.name)
    assert files(stack) == []


async def test_a_context_that_a_conversation_uses_stays(stack: ContextStack) -> None:
    """Its next run needs it, however long that may be away."""
    context = await stack.upload_text(b"abc", ttl=Duration(seconds=60))
    row = {
        "tenant": "default",
        "conversation_id": "c1",
        "context_id": context.name.partition("/")[2],
        "limits": b"",
        "idle_ttl_us": 0,
        "created_us": 0,
        "used_us": 0,
        "usage": b"",
        "sub_calls": 0,
    }
    async with stack.database.writing() as connection:
        await connection.execute(tables.conversations.insert().values(row))
    await pass_time(stack, 3600)

    error = await refused(stack.delete(context.name))
    await stack.parts.removal.sweep()

    assert error.metadata == {"context": context.name, "conversation": "conversations/c1"}
    assert await stack.read(context.name) == b"abc"


async def test_no_run_begins_over_a_deleted_context(stack: ContextStack) -> None:
    """It was there when the request was checked, and no longer when it is stored."""
    context = await stack.upload_text(b"abc")
    await stack.delete(context.name)

    with pytest.raises(Exception, match="there is no contexts/"):
        await make_run(stack, context)

    assert (await rows(stack))["contexts"] == 0


async def test_deleting_what_is_not_there(stack: ContextStack) -> None:
    name = "contexts/" + "0" * 32

    error = await refused(stack.delete(name))
    await stack.delete(name, allow_missing=True)

    assert (error.code, error.metadata) == (grpc.StatusCode.NOT_FOUND, {"resource": name})


async def test_a_deleted_context_can_be_uploaded_again(stack: ContextStack) -> None:
    context = await stack.upload_text(b"abc")
    await stack.delete(context.name)

    again = await stack.upload(*text_messages(b"abc"))

    assert not again.already_stored
    assert await stack.read(again.context.name) == b"abc"


async def test_bytes_that_cannot_be_removed_are_removed_later(
    stack: ContextStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill in between: the context is gone at once, its bytes with the next sweep."""
    context = await stack.upload_text(b"abc")

    async def fail(_key: str) -> None:
        raise ObjectStoreError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(stack.blobs, "delete", fail)
        await stack.delete(context.name)
        again = await stack.upload_text(b"abc")
    assert (await rows(stack))["stored"] == 6
    await stack.parts.removal.sweep()

    assert len(files(stack)) == 1
    assert await stack.read(again.name) == b"abc"
    assert (await rows(stack))["stored"] == 3


async def test_a_context_goes_when_its_time_is_over(stack: ContextStack) -> None:
    short = await stack.upload_text(b"abc", ttl=Duration(seconds=60))
    long = await stack.upload_text(b"def", ttl=Duration(seconds=7200))
    forever = await stack.upload_text(b"ghi")
    assert short.expire_time.ToMicroseconds() == short.create_time.ToMicroseconds() + 60_000_000
    assert not forever.HasField("expire_time")
    await pass_time(stack, 3600)

    await stack.parts.removal.sweep()

    left = await stack.stub.ListContexts(pb.ListContextsRequest(), timeout=TIMEOUT_S)
    assert {c.name for c in left.contexts} == {long.name, forever.name}
    assert len(files(stack)) == 2


async def test_a_context_in_use_outlives_its_time(stack: ContextStack) -> None:
    context = await stack.upload_text(b"abc", ttl=Duration(seconds=60))
    record = await make_run(stack, context)
    await pass_time(stack, 3600)

    await stack.parts.removal.sweep()
    assert await stack.read(context.name) == b"abc"

    await set_state(stack, record, Run.STATE_FAILED)
    await stack.parts.removal.sweep()
    assert files(stack) == []


async def test_content_that_comes_again_lives_for_the_longer_time(stack: ContextStack) -> None:
    first = await stack.upload_text(b"abc", ttl=Duration(seconds=7200))
    second = await stack.upload_text(b"abc", ttl=Duration(seconds=60))
    third = await stack.upload_text(b"abc")

    assert second.expire_time == first.expire_time
    assert not third.HasField("expire_time")


@pytest.mark.parametrize(("seconds", "is_taken"), [(59, False), (60, True), (-5, False)])
async def test_a_time_to_live_is_at_least_a_minute(
    stack: ContextStack, seconds: int, is_taken: bool
) -> None:
    call = stack.upload(*text_messages(b"abc", ttl=Duration(seconds=seconds)))
    if is_taken:
        assert (await call).context.HasField("expire_time")
    else:
        assert (await refused(call)).metadata == {"field": "start.ttl"}


async def test_the_servers_own_time_is_used_where_none_is_named(tmp_path: Path) -> None:
    async with context_service(tmp_path, ttl_s=90.0) as stack:
        context = await stack.upload_text(b"abc")

    lives_us = context.expire_time.ToMicroseconds() - context.create_time.ToMicroseconds()
    assert lives_us == 90_000_000


async def test_an_upload_that_is_left_alone_goes(stack: ContextStack) -> None:
    uploads = {name: f"00000000-0000-0000-0000-00000000000{name}" for name in "12"}
    await stack.break_off(start(TEXT, upload_id=uploads["1"], size_bytes=9), chunk(b"abc", 0))
    await stack.kept(uploads["1"])
    await stack.upload(*text_messages(b"whole", upload_id=uploads["2"]))
    stored = StoredBlobs(stack.database, tenant_bytes_max=0)
    removal = Removal(
        stack.parts.store,
        UploadStore(stack.database, stored, unfinished_max=9),
        stored,
        stack.blobs,
        upload_ttl_s=-1.0,
    )

    await removal.sweep()

    for upload_id in uploads.values():
        assert (await refused(stack.kept(upload_id))).code is grpc.StatusCode.NOT_FOUND
    assert len(files(stack)) == 1
    left = await rows(stack)
    assert (left["uploads"], left["contexts"], left["stored"]) == (0, 1, 5)


async def pass_time(stack: ContextStack, seconds: int) -> None:
    """Make every context that expires older."""
    table = tables.contexts
    async with stack.database.writing() as connection:
        await connection.execute(
            update(table).values(expires_us=table.c.expires_us - seconds * 1_000_000)
        )


async def test_no_tenant_sees_what_another_one_has(stack: ContextStack) -> None:
    """Also whether equal bytes are there: `already_stored` must not tell."""
    mine = await stack.upload_text(b"abc", tenant="mine")

    theirs = await stack.upload(*text_messages(b"abc"), tenant="theirs")

    assert not theirs.already_stored
    assert len(files(stack)) == 2
    await stack.delete(mine.name, tenant="mine")
    assert await stack.read(theirs.context.name, tenant="theirs") == b"abc"
    for call in (
        stack.read(theirs.context.name, tenant="mine"),
        stack.delete(theirs.context.name, tenant="mine"),
        _get(stack, theirs.context.name, tenant="mine"),
    ):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND


async def _get(stack: ContextStack, name: str, *, tenant: str) -> Any:
    request = pb.GetContextRequest(name=name)
    return await stack.stub.GetContext(request, timeout=TIMEOUT_S, metadata=[("tenant", tenant)])


async def test_an_upload_belongs_to_its_tenant(stack: ContextStack) -> None:
    upload_id = "00000000-0000-0000-0000-000000000001"
    await stack.upload(*text_messages(b"abc", upload_id=upload_id), tenant="theirs")

    assert (await refused(stack.kept(upload_id))).code is grpc.StatusCode.NOT_FOUND
    mine = await stack.upload(*text_messages(b"xyz", upload_id=upload_id))
    assert await stack.read(mine.context.name) == b"xyz"


@pytest.mark.parametrize("announced", [True, False])
async def test_a_tenant_stores_as_much_as_it_may(tmp_path: Path, announced: bool) -> None:
    async with context_service(tmp_path, tenant_bytes_max=10_000_000) as stack:
        first = await stack.upload_text(b"a" * 4_000_000)
        size = {"size_bytes": 6_000_001} if announced else {}

        error = await stack.refused_upload(*text_messages(b"b" * 6_000_001, **size))
        await stack.upload_text(b"b" * 6_000_000)
        await stack.upload_text(b"c" * 6_000_000, tenant="another")
        await stack.delete(first.name)
        await stack.upload_text(b"d" * 4_000_000)

        assert isinstance(error, ResourceExhaustedError)
        assert error.reason == "ERROR_REASON_STORAGE_QUOTA_EXCEEDED"
        assert error.metadata["value"] == "10000000"
        assert (await rows(stack))["stored"] == 16_000_000


async def test_equal_bytes_count_once(tmp_path: Path) -> None:
    async with context_service(tmp_path, tenant_bytes_max=8_000_000) as stack:
        for _ in range(3):
            await stack.upload_text(b"a" * 4_000_000)

        assert (await rows(stack))["stored"] == 4_000_000


async def test_names_and_metadata_count_until_they_are_gone(stack: ContextStack) -> None:
    """Those of one upload may have 64 MiB, over no bytes at all."""
    words = [document("a" * 1000, metadata={"key": "ä" * 100}), document("b")]
    first = await stack.upload(start(DOCUMENTS), *words)
    assert (await rows(stack))["stored"] == 1000 + 3 + 200 + 1
    await stack.upload(start(DOCUMENTS), *words)  # the same: it is there already
    assert (await rows(stack))["stored"] == 1000 + 3 + 200 + 1
    second = await stack.upload(start(DOCUMENTS), document("c" * 50))
    assert (await rows(stack))["stored"] == 1000 + 3 + 200 + 1 + 50

    await stack.delete(first.context.name)
    assert (await rows(stack))["stored"] == 50
    await stack.delete(second.context.name)
    assert await rows(stack) == NOTHING


async def test_names_and_metadata_are_no_more_than_may_be_stored(tmp_path: Path) -> None:
    async with context_service(tmp_path, tenant_bytes_max=2_000) as stack:
        await stack.upload(start(DOCUMENTS), document("a" * 1000))
        error = await refused(stack.upload(start(DOCUMENTS), document("b" * 1001)))
        assert error.reason == ErrorReason.ERROR_REASON_STORAGE_QUOTA_EXCEEDED
        assert (await rows(stack))["stored"] == 1000
        await stack.upload(start(DOCUMENTS), document("b" * 1000))


async def test_unfinished_uploads_are_bounded(tmp_path: Path) -> None:
    async with context_service(tmp_path, unfinished_max=2) as stack:
        ids = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
        for n, upload_id in enumerate(ids[:2]):
            call = stack.stub.UploadContext(timeout=TIMEOUT_S)
            await call.write(start(TEXT, upload_id=upload_id))
            await call.write(chunk(b"abc", 0))
            await stack.have_written(3 * (n + 1))

        error = await refused(stack.upload(start(TEXT, upload_id=ids[2]), chunk(b"a", 0)))
        resumed = await stack.upload(start(TEXT, upload_id=ids[0]), chunk(b"def", 3))
        await stack.upload(start(TEXT, upload_id=ids[2]), chunk(b"a", 0))

        assert error.reason == ErrorReason.ERROR_REASON_UPLOADS_TOO_MANY
        assert error.metadata == {"limit": "2"}
        assert await stack.read(resumed.context.name) == b"abcdef"


async def test_uploads_and_deletions_at_once_leave_what_the_database_says(
    stack: ContextStack,
) -> None:
    """Whoever comes first: a context that is there can be read, and one that is not has left
    nothing."""
    name = (await stack.upload_text(LARGE)).name

    async def upload(number: int) -> None:
        for _ in range(3):
            await stack.upload_text(LARGE, upload_id=str(uuid.UUID(int=number)) if number else "")

    async def delete() -> None:
        for _ in range(9):
            await stack.delete(name, allow_missing=True)

    await asyncio.gather(upload(0), upload(1), upload(0), delete(), delete())
    await stack.parts.removal.sweep()

    left = await rows(stack)
    if left["contexts"]:
        assert await stack.read(name) == LARGE
    assert left["blobs"] == left["contexts"]
    assert left["stored"] == len(LARGE) * left["contexts"]
    assert len(files(stack)) == 2 * left["contexts"]
