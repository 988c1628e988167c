"""The object store in a real S3-compatible server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import obstore
import pytest
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.context_service_pb2 import CreateContextRequest
from fathom.orchestrator.v1.orchestrator_service_pb2 import CreateRunRequest, ForkRunRequest
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom_client.errors import UnavailableError

from common import parted_objects
from common.config import ConfigError, Secret
from common.errors import received
from common.parted_objects import PART_BYTES, PartedObjects, RemoteStoreError, open_bucket
from orchestrator.blobs import BlobStore
from orchestrator.s3_blobs import S3BlobStore
from tests.support.blob_store_contract import BlobStoreContract
from tests.support.contexts import ContextStack, context_service, refused, text_messages
from tests.support.cutting_proxy import Gate, cutting_proxy
from tests.support.eventually import eventually
from tests.support.fake_sandbox import FakeSandbox
from tests.support.orchestrator import TIMEOUT_S, chunk, orchestrator, start
from tests.support.postgres import PostgresServer
from tests.support.s3 import SECRET_KEY, S3Server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


class TestS3(BlobStoreContract):
    """The contract, on a bucket."""

    @pytest.fixture
    def store(self, server: S3Server) -> BlobStore:
        return S3BlobStore(server.objects())


async def test_an_upload_goes_on_after_the_store_was_away(server: S3Server, tmp_path: Path) -> None:
    """Parts that are stored are not sent again; the client is told when to come back."""
    data = b"a line of text\n" * 1_500_000
    upload_id, place, gate = str(uuid.uuid4()), server.new_place(), Gate()
    direct = server.objects(place=place)
    async with cutting_proxy(server.endpoint.removeprefix("http://"), gate=gate) as address:
        blobs = S3BlobStore(server.objects(place=place, endpoint=f"http://{address}"))
        async with context_service(tmp_path, blobs=blobs) as stack:
            call = stack.stub.UploadContext(timeout=100)
            await call.write(start(Context.KIND_TEXT, upload_id=upload_id))
            for at in range(0, PART_BYTES, 1 << 20):
                await call.write(chunk(data[at : at + (1 << 20)], at))
            await eventually(lambda: bool(listed(direct, "blobs")))
            first = await stack.kept(upload_id)
            gate.close()
            messages = text_messages(data, offset=first.bytes_kept, upload_id=upload_id)
            error = await stack.refused_upload(*messages)
            gate.open()
            kept = await stack.kept(upload_id)
            messages = text_messages(data, offset=kept.bytes_kept, upload_id=upload_id)
            context = (await stack.upload(*messages)).context

            assert isinstance(error, UnavailableError)
            assert error.reason == "ERROR_REASON_OBJECT_STORE_UNAVAILABLE"
            assert error.retry_after_s is not None
            assert (first.bytes_kept, kept.bytes_kept) == (PART_BYTES, PART_BYTES)
            assert await stack.read(context.name) == data


async def test_a_store_that_accepts_and_never_answers_is_given_up(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says that a machine is gone; who waits for it is told when to come back."""
    monkeypatch.setattr(parted_objects, "_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(parted_objects, "_RETRIES", 0)
    data, place, gate = b"a line of text\n" * 1_000, server.new_place(), Gate()
    async with cutting_proxy(server.endpoint.removeprefix("http://"), gate=gate) as address:
        blobs = S3BlobStore(server.objects(place=place, endpoint=f"http://{address}"))
        async with context_service(tmp_path, blobs=blobs) as stack:
            stored = await stored_in_time(stack, b"stored before")
            gate.flowing.clear()
            refusal = await stack.refused_upload(*text_messages(data))
            unread = await refused(stack.read(stored.name))
            gate.flowing.set()

            context = await stored_in_time(stack, data)
            assert context.size_bytes == len(data)
    for error, reason in ((refusal, refusal.reason), (unread, unread.reason_name)):
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert reason == "ERROR_REASON_OBJECT_STORE_UNAVAILABLE"
        assert error.retry_after_s is not None


async def stored_in_time(stack: ContextStack, data: bytes) -> Context:
    """Store a text and read it back; again where a busy machine makes a store slow that is there,
    as clients do that are told when to come back."""
    stored = Context()

    async def is_there() -> bool:
        try:
            stored.CopyFrom(await stack.upload_text(data))
            return await stack.read(stored.name) == data
        except grpc.aio.AioRpcError as error:
            assert received(error).code is grpc.StatusCode.UNAVAILABLE
            return False

    await eventually(is_there)
    return stored


async def test_a_run_waits_for_a_store_that_is_away(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it has to read is there again once the store is, and it has the time."""
    gate = Gate()
    async with cutting_proxy(server.endpoint.removeprefix("http://"), gate=gate) as address:
        settings: dict[str, Any] = {
            "object_store": server.new_place(),
            "object_store_endpoint": f"http://{address}",
            "object_store_credentials": server.credentials,
        }
        async with orchestrator(tmp_path, **settings) as stack:
            context = await stack.upload(b"We say that it was paid in full in May.\n")
            stack.gateway.replies = ["FINAL(in May)"]
            gate.close()
            spec = RunSpec(question="When?", context=context.name, direct_tokens_max=1_000)
            made = (await stack.runs.CreateRun(CreateRunRequest(spec=spec), timeout=TIMEOUT_S)).run
            await eventually(lambda: "a run waits for the object store" in caplog.text)
            gate.open()
            ended = (await stack.watch(made))[-1].run_changed

    assert (ended.state, ended.answer.text) == (Run.STATE_ANSWERED, "in May")


async def test_a_deleted_context_leaves_no_part(server: S3Server, tmp_path: Path) -> None:
    remote = server.objects()
    data = b"a line of text\n" * 1_500_000
    async with context_service(tmp_path, blobs=S3BlobStore(remote)) as stack:
        context = await stack.upload_text(data)
        assert await stack.read(context.name) == data
        (blob,) = {path.rpartition("/")[0] for path in listed(remote, "blobs")}
        assert len(listed(remote, "indexes")) == 1

        await stack.delete(context.name)

        assert remote.size(blob) is None
        assert listed(remote, "blobs") == listed(remote, "indexes") == []


async def test_an_object_becomes_a_context(server: S3Server, tmp_path: Path) -> None:
    """Of a bucket that the configuration names, and of no other."""
    bucket = open_bucket(
        "tests", endpoint=server.endpoint, region="r", credentials=server.credentials
    )
    data = b"a line of text\n" * 1_000_000
    obstore.put(bucket, "mails/all of them.txt", data)
    async with context_service(tmp_path, buckets={"tests": bucket}) as stack:

        async def create(uri: str) -> Context:
            request = CreateContextRequest(uri=uri, kind=Context.KIND_TEXT)
            return (await stack.stub.CreateContext(request, timeout=100)).context

        context = await create("s3://tests/mails/all%20of%20them.txt")
        missing = await refused(create("s3://tests/none"))
        elsewhere = await refused(create("s3://other/mails"))
        keyless = await refused(create("s3://tests/"))

        assert await stack.read(context.name) == data
    assert missing.code is grpc.StatusCode.NOT_FOUND
    assert elsewhere.code is grpc.StatusCode.PERMISSION_DENIED
    assert keyless.metadata == {"field": "uri"}


async def test_runs_on_postgresql_keep_all_that_is_large_in_the_bucket(
    server: S3Server, postgres: PostgresServer, tmp_path: Path
) -> None:
    """Nothing of a run is on the machine that drove it: another one forks it, with its profile and
    what its code was told."""
    place, url = server.new_place(), postgres.new_database()
    settings: dict[str, Any] = {
        "database_url": Secret(url),
        "object_store": place,
        "object_store_endpoint": server.endpoint,
        "object_store_credentials": server.credentials,
    }
    question, sandbox = "What was paid?", FakeSandbox()
    answer = '{"answer": "\\"it was paid in full\\"", "evidence": [], "gaps": ["%s"]}' % (
        "x" * 90_000
    )
    async with orchestrator(tmp_path / "one", sandbox=sandbox, **settings) as one:
        context = await one.upload(b"We say that it was paid in full in May.\n")
        one.gateway.replies = [
            "```repl\nprint('o' * 200_000)\n```",
            f"```repl\nFINAL({answer!r})\n```",
        ]
        spec = RunSpec(question=question, context=context.name, profile="profiles/search")
        made = (await one.runs.CreateRun(CreateRunRequest(spec=spec), timeout=TIMEOUT_S)).run
        run = (await one.watch(made))[-1].run_changed
    async with orchestrator(tmp_path / "two", sandbox=sandbox, **settings) as two:
        two.gateway.replies = ["FINAL({})", f"```repl\nFINAL({answer!r})\n```"]
        asked = ForkRunRequest(name=run.name, after_turn=1)
        forked = (await two.watch((await two.runs.ForkRun(asked, timeout=TIMEOUT_S)).run))[-1]

    for ended in (run, forked.run_changed):
        assert (ended.state, ended.answer.text) == (Run.STATE_ANSWERED, answer)
        assert [c.verified for c in ended.answer.citations] == [True]
    assert forked.run_changed.profile_version == run.profile_version
    remote = server.objects(place=place)
    kept = {path.split("/")[0] for path in listed(remote, "")}
    assert kept == {"blobs", "outputs", "profiles"}
    assert not list(tmp_path.rglob("outputs"))


def listed(remote: PartedObjects, prefix: str) -> list[str]:
    """Return where parts are stored."""
    return [found["path"] for page in obstore.list(remote._store, prefix) for found in page]


@pytest.mark.parametrize(
    ("location", "credentials"),
    [
        ("s3://", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n"),
        ("s3://bucket?x=1", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n"),
        ("s3://bucket", "[default]\naws_access_key_id = a\n"),
        ("s3://bucket", "secret words that are no settings"),
        ("s3://bucket", ""),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused_without_a_secret(
    tmp_path: Path, location: str, credentials: str
) -> None:
    file = tmp_path / "credentials"
    file.write_text(credentials)

    with pytest.raises(ConfigError, match="object_store") as caught:
        PartedObjects.open(location, endpoint="", region="r", credentials=file)

    assert "secret words" not in str(caught.value)


def test_secrets_show_in_no_words(server: S3Server, tmp_path: Path) -> None:
    """Neither in a description of the store nor in an error of it."""
    wrong = tmp_path / "credentials"
    wrong.write_text(server.credentials.read_text().replace(SECRET_KEY, f"{SECRET_KEY}-wrong"))
    objects = PartedObjects.open(
        "s3://tests/x", endpoint=server.endpoint, region="r", credentials=wrong
    )
    with pytest.raises(RemoteStoreError) as caught:
        objects.put("x", 0, b"")

    for words in (repr(objects), repr(objects._store), str(caught.value), repr(caught.value)):
        assert SECRET_KEY not in words
