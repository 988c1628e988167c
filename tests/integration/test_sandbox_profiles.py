"""Profiles: libraries that are there when a session starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire

from sandbox_service.guest_build import GuestBuild
from tests.support.sandbox import Sandbox, details, guest, sandbox

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def build() -> GuestBuild:
    return guest()


@pytest.fixture
async def box(build: GuestBuild, tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(build, tmp_path) as box:
        yield box


async def test_the_offered_profiles_are_listed_with_the_default_first(box: Sandbox) -> None:
    info = await box.stub.GetSandboxInfo(wire.GetSandboxInfoRequest(), timeout=30)

    assert list(info.profiles) == ["base", "numpy", "pandas"]


async def test_a_session_that_names_no_profile_has_the_default(box: Sandbox) -> None:
    session = await box.session(await box.create())

    assert session.profile == "base"


async def test_a_profile_that_is_not_offered_is_refused(box: Sandbox) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(profile="scipy")

    code, reason, metadata = details(caught.value)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata["field"] == "profile"
    assert "base, numpy, pandas" in str(caught.value.details())


@pytest.mark.parametrize(
    ("profile", "modules"),
    [("base", set()), ("numpy", {"numpy"}), ("pandas", {"numpy", "pandas"})],
)
async def test_a_profile_has_its_libraries_imported(
    box: Sandbox, profile: str, modules: set[str]
) -> None:
    session = await box.create(profile=profile)

    ran = await box.run(session, "import sys; {'numpy', 'pandas'} & set(sys.modules)")

    assert eval(ran.out) == modules
    assert (await box.session(session)).profile == profile


async def test_a_profile_leaves_no_names_of_its_own(box: Sandbox) -> None:
    """What was rehearsed is nobody's variable."""
    session = await box.create(profile="pandas")

    ran = await box.run(session, "1", report_variables=True)

    assert not ran.result.variables


async def test_a_table_is_made_without_paying_for_the_import(box: Sandbox) -> None:
    """Importing pandas takes some 3,000 million instructions."""
    session = await box.create(profile="pandas")

    ran = await box.run(session, "import pandas as pd\npd.DataFrame({'a': [1, 2, 3]}).a.sum()")

    assert "6" in ran.out
    assert ran.result.fuel_used < 100_000_000


async def test_sessions_of_a_profile_draw_different_numbers(box: Sandbox) -> None:
    """The image has one state of numpy's generator; each session begins with its own."""
    code = "import numpy as np\nfloat(np.random.random())"
    drawn = {(await box.run(await box.create(profile="numpy"), code)).out for _ in range(3)}

    assert len(drawn) == 3


async def test_a_trap_brings_a_profile_back(box: Sandbox) -> None:
    session = await box.create(profile="pandas")
    await box.run(session, "import pandas as pd\ntable = pd.DataFrame({'a': [1, 2]})")

    stopped = await box.run(
        session, "table = None\nraise SystemExit if 0 else __import__('os')._exit(1)"
    )
    after = await box.run(session, "int(table.a.sum())")

    assert not stopped.result.state_kept
    assert after.out == "3\n"
