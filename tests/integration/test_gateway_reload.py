"""A configuration that changes while the gateway serves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as pb2

from common.errors import received
from llm_gateway import reload
from llm_gateway.catalog import Catalog
from llm_gateway.reload import Connections, Reloads
from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually
from tests.support.gateway import (
    config_file,
    generate,
    metadata,
    opened_gateway,
)
from tests.support.gateway_process import GatewayProcess
from tests.support.played_model import Gate, PlayedModel, answers, fails


@dataclasses.dataclass
class Scene:
    """A gateway, the file it was started with, and two providers of which it names the first."""

    stub: Any
    reloads: Reloads
    path: Path
    first: PlayedModel
    second: PlayedModel

    def write(self, provider: PlayedModel, **changes: str) -> None:
        config_file(self.path, [provider.base_url], **changes)

    async def ask(self, **fields: Any) -> pb2.GenerateResponse:
        request = generate(**fields)
        response: pb2.GenerateResponse = await self.stub.Generate(
            request, metadata=metadata(), timeout=30
        )
        return response


@contextlib.asynccontextmanager
async def scene(folder: Path, **settings: Any) -> AsyncIterator[Scene]:
    path = folder / "c.toml"
    async with PlayedModel(answers("first")) as first, PlayedModel(answers("second")) as second:
        config_file(path, [first.base_url])
        async with opened_gateway(path, **settings) as (stub, opened):
            yield Scene(stub, opened.reloads, path, first, second)


@pytest.fixture(autouse=True)
def provider_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read again with this process's environment."""
    monkeypatch.setenv("PROVIDER_KEY", "sk-provider-secret")


async def test_new_calls_get_what_the_file_says_now(tmp_path: Path) -> None:
    async with scene(tmp_path) as played:
        assert (await played.ask()).generation.text == "first"
        played.write(played.second)
        assert await played.reloads.reload()

        assert (await played.ask()).generation.text == "second"


async def test_a_call_under_way_ends_as_it_began(tmp_path: Path) -> None:
    """Its provider is gone from the file, and its connection stays until it has its answer."""
    async with scene(tmp_path, abandoned_drain_s=0.01) as played:
        gate = Gate(answers("still first"))
        played.first.plan(gate)
        asking = asyncio.ensure_future(played.ask())
        await gate.reached.wait()
        played.write(played.second)
        assert await played.reloads.reload()
        assert (await played.ask()).generation.text == "second"
        gate.opened.set()

        assert (await asking).generation.text == "still first"


async def test_a_retry_of_a_call_under_way_still_finds_its_provider(tmp_path: Path) -> None:
    """Connections are closed after the last call that may use them, not at the reload."""
    async with scene(tmp_path, abandoned_drain_s=0.01) as played:
        gate = Gate(fails(503))
        played.first.plan(gate)
        asking = asyncio.ensure_future(played.ask())
        await gate.reached.wait()
        for provider in (played.second, played.first, played.second):
            played.write(provider)
            assert await played.reloads.reload()
        gate.opened.set()

        assert (await asking).generation.text == "first"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("[["),
        lambda path: path.unlink(),
        lambda path: path.write_text(path.read_text().replace("timeout_s", "timeout")),
        lambda path: path.write_text(path.read_text().replace("PROVIDER_KEY", "UNSET_KEY")),
    ],
    ids=["no TOML", "gone", "typo", "no key"],
)
async def test_a_file_that_is_not_valid_changes_nothing(
    spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path) as played:
        spoil(played.path)
        with caplog.at_level(logging.ERROR, "llm_gateway.reload"):
            assert not await played.reloads.reload()

        assert (await played.ask()).generation.text == "first"
    assert "c.toml" in "".join(each.__dict__.get("problem", "") for each in caplog.records)


async def test_a_defect_of_ours_changes_nothing_and_does_not_end_the_watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else keys that are changed later would be missed, until somebody wonders."""
    async with scene(tmp_path, credentials_check_s=0.01) as played:
        looks = []

        def broken(*given: object) -> Catalog:
            looks.append(given)
            raise ZeroDivisionError

        monkeypatch.setattr(reload, "refreshed", broken)
        monkeypatch.setattr(Connections, "offering", broken)
        await eventually(lambda: len(looks) > 2)
        played.write(played.second)

        assert not await played.reloads.reload()
        assert (await played.ask()).generation.text == "first"


async def test_a_deployment_that_is_left_alone_stays_so(tmp_path: Path) -> None:
    """A reload must not send everybody back to a provider that is down."""
    async with scene(tmp_path) as played:
        played.first.usual = fails(500)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError):
                await played.ask()
        asked = len(played.first.bodies)
        played.write(played.first, deployment_keys="concurrency_max = 7")
        assert await played.reloads.reload()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await played.ask()

    assert received(caught.value).reason == ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
    assert asked == len(played.first.bodies) == 5


async def test_what_may_leave_and_what_is_listed_are_renewed_too(tmp_path: Path) -> None:
    """Rules about secrets must not need a restart."""
    async with scene(tmp_path) as played:
        text = played.path.read_text().replace('name = "m0"', 'name = "renamed"')
        text = text.replace('["m0"]', '["renamed"]')
        played.path.write_text(text + '[egress]\nsecrets = "refuse"\n')
        assert await played.reloads.reload()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await played.ask(text="AKIA" + "A" * 16)
        models = await played.stub.ListModels(
            pb2.ListModelsRequest(), metadata=metadata(), timeout=30
        )

    assert received(caught.value).reason == ErrorReason.ERROR_REASON_EGRESS_REFUSED
    assert [model.name for model in models.models] == ["models/renamed"]


async def test_sighup_has_the_file_read_again(tmp_path: Path) -> None:
    """The whole way, in a process of its own."""
    path = tmp_path / "c.toml"
    async with PlayedModel(answers("first")) as first, PlayedModel(answers("second")) as second:
        config_file(path, [first.base_url])
        database = f"sqlite+aiosqlite:///{tmp_path}/gateway.sqlite"
        async with GatewayProcess(path, database) as process:

            async def ask() -> str:
                request, carried = generate(), metadata()
                answer = await process.stub.Generate(request, metadata=carried, timeout=30)
                return str(answer.generation.text)

            assert await ask() == "first"
            path.write_text("[[")
            process.signal(signal.SIGHUP)
            await eventually(lambda: "is refused" in process.log)
            assert await ask() == "first"
            config_file(path, [second.base_url])
            process.signal(signal.SIGHUP)
            await eventually(lambda: "is taken over" in process.log)
            assert await ask() == "second"


@pytest.mark.parametrize(("spoilt", "status"), [("", 0), ("timeout", 2)], ids=["good", "typo"])
async def test_a_file_can_be_checked_before_it_is_taken_over(
    tmp_path: Path, spoilt: str, status: int
) -> None:
    """With the same words as at the start, and nothing is served."""
    path = config_file(tmp_path / "c.toml", ["http://127.0.0.1:1/v1"])
    if spoilt:
        path.write_text(path.read_text().replace("timeout_s", spoilt))
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llm_gateway", "--check-config", str(path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=end_with_parent,
    )
    said, complained = await running.communicate()

    assert running.returncode == status
    if status:
        assert b"timeout: there is no such key" in complained
    else:
        assert said.decode() == f"{path} is valid: deployments m0\n"
