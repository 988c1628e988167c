"""Runs under a profile over real gRPC: what is taken from it, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import operations_service_pb2 as operations_pb
from fathom.orchestrator.v1 import operations_service_pb2_grpc, profile_service_pb2_grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1 import profile_service_pb2 as profile_pb
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.errors import ServiceError, received
from tests.support.eventually import eventually
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator

PROFILE = """
version = 3
description = "For tests"
[prompts]
system = "words.md"
[limits.defaults]
turns_max = 7
[limits.ceilings]
turns_max = 9
"""


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "words.md").write_text("Look twice.")
    (folder / "own.toml").write_text(PROFILE)
    (folder / "theirs.toml").write_text('tenants = ["acme"]\n' + PROFILE)
    async with orchestrator(tmp_path, profiles_folder=folder, profiles_check_s=0.05) as running:
        yield running


async def create(stack: Stack, **fields: Any) -> Run:
    context = await stack.upload()
    spec = RunSpec(question="why?", context=context.name, **fields)
    return (await stack.runs.CreateRun(pb.CreateRunRequest(spec=spec), timeout=TIMEOUT_S)).run


async def failure(stack: Stack, **fields: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await create(stack, **fields)
    return received(failed.value)


async def test_a_run_is_told_the_profiles_words_and_names_its_version(stack: Stack) -> None:
    stack.gateway.replies = ["FINAL(so it is)"]
    run = await create(stack, profile="profiles/own")
    ended = (await stack.watch(run))[-1].run_changed

    assert ended.profile_version.startswith("3+")
    assert ended.spec.limits.turns_max == 7
    assert "Look twice." in stack.gateway.requests[0].prompt.messages[0].text


async def test_a_limit_at_the_profiles_ceiling_is_taken_and_one_above_is_refused(
    stack: Stack,
) -> None:
    """The server allows 200 turns; the profile does not."""
    stack.gateway.replies = ["FINAL(so it is)"]
    run = await create(stack, profile="profiles/own", limits=Limits(turns_max=9))
    error = await failure(stack, profile="profiles/own", limits=Limits(turns_max=10))

    assert run.spec.limits.turns_max == 9
    assert error.reason == ErrorReason.ERROR_REASON_LIMIT_ABOVE_CEILING
    assert error.metadata == {"field": "spec.limits.turns_max", "value": "10", "ceiling": "9"}


@pytest.mark.parametrize("name", ["profiles/none", "profiles/theirs", "own"])
async def test_a_profile_that_is_not_offered_is_refused_by_field(stack: Stack, name: str) -> None:
    """Another tenant's is no more known than one that is none."""
    error = await failure(stack, profile=name)

    assert (error.code, error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INVALID_FIELD,
    )
    assert error.metadata["field"] == "spec.profile"


async def test_profiles_are_listed_without_what_models_are_told(stack: Stack) -> None:
    stub = profile_service_pb2_grpc.ProfileServiceStub(stack.channel)
    listed = await stub.ListProfiles(profile_pb.ListProfilesRequest(), timeout=TIMEOUT_S)
    got = await stub.GetProfile(
        profile_pb.GetProfileRequest(name="profiles/own"), timeout=TIMEOUT_S
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.GetProfile(
            profile_pb.GetProfileRequest(name="profiles/theirs"), timeout=TIMEOUT_S
        )

    assert [profile.name for profile in listed.profiles] == ["profiles/own"]
    assert got.profile.limit_ceilings.turns_max == 9
    assert b"Look twice." not in listed.SerializeToString()
    assert received(failed.value).reason == ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND


async def test_a_fork_keeps_its_profile(stack: Stack, tmp_path: Path) -> None:
    """Its session has the helpers of that version, so that another would be half of each."""
    stack.gateway.replies = ["```repl\n1\n```", "FINAL(so it is)"]
    run = (await stack.watch(await create(stack, profile="profiles/own")))[-1].run_changed
    stub = profile_service_pb2_grpc.ProfileServiceStub(stack.channel)
    (tmp_path / "profiles" / "words.md").write_text("Look thrice.")

    async def is_another_offered() -> bool:
        request = profile_pb.GetProfileRequest(name="profiles/own")
        offered = (await stub.GetProfile(request, timeout=TIMEOUT_S)).profile
        return offered.version != run.profile_version

    await eventually(is_another_offered)
    changes = RunSpec(question="and else?")
    fork = await stack.runs.ForkRun(
        pb.ForkRunRequest(name=run.name, after_turn=1, changes=changes), timeout=TIMEOUT_S
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        changes.profile = "profiles/own"
        await stack.runs.ForkRun(
            pb.ForkRunRequest(name=run.name, after_turn=1, changes=changes), timeout=TIMEOUT_S
        )

    assert fork.run.profile_version == run.profile_version
    assert received(failed.value).metadata["field"] == "changes.profile"


async def test_a_profile_that_is_stopped_takes_no_run(stack: Stack) -> None:
    stub = operations_service_pb2_grpc.OperationsServiceStub(stack.channel)
    switch = operations_pb.KillSwitch(target="profiles/own", reason="it misbehaves")
    await stub.SetKillSwitch(
        operations_pb.SetKillSwitchRequest(kill_switch=switch), timeout=TIMEOUT_S
    )
    error = await failure(stack, profile="profiles/own")

    assert error.reason == ErrorReason.ERROR_REASON_KILL_SWITCH
    assert error.metadata["target"] == "profiles/own"
