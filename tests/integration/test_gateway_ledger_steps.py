"""A gateway that is killed between any two steps of a call, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1 import quota_service_pb2 as quota_pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub

from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually
from tests.support.gateway import KEY, config_file, generate, metadata
from tests.support.gateway_process import GatewayProcess
from tests.support.played_model import PlayedModel
from tests.support.valkey import ValkeyServer

TIMEOUT_S = 40
OPERATOR = (("fathom-operator-key", KEY.reveal()),)
QUOTA = "tenants/acme/quotas/all"
COST = 10 * 1_000 + 3 * 2_000
WORST = (len("hello") + 16) * 1_000 + 3 * 2_000
STEPS = {
    "database": ["open", "ask", "record"],
    "valkey": ["reserve", "open", "ask", "record", "settle"],
}
"""What a call does outside of its process; with accounts in the database, in two transactions."""


class Mortals:
    """Gateways beside `survivor` that die at a step."""

    def __init__(self, survivor: GatewayProcess, folder: Path) -> None:
        self._environ = survivor.environ
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with (self._folder / "mortals.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.dying_gateway"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environ,
                preexec_fn=end_with_parent,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def ask(
        self, step: int, request: pb2.GenerateRequest, carried: Any
    ) -> tuple[Generation | None, list[str]]:
        """Return the answer of a gateway that dies at `step`, and what it had passed by then."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        address = self._folder / f"mortal-{step}"
        self._process.stdin.write(f"{step} {address}\n".encode())
        await eventually(address.exists, within_s=TIMEOUT_S)
        async with grpc.aio.insecure_channel(address.read_text().strip()) as channel:
            answer = None
            with contextlib.suppress(grpc.aio.AioRpcError):
                stub = GatewayServiceStub(channel)
                answered = await stub.Generate(request, metadata=carried, timeout=TIMEOUT_S)
                answer = answered.generation
        passed: list[str] = []
        while answer is None and "dead" not in passed:
            line = await asyncio.wait_for(self._process.stdout.readline(), TIMEOUT_S)
            passed.append(line.decode().strip())
        return answer, passed[:-1]


async def spent_and_reserved(gateway: GatewayProcess) -> tuple[int, int, int]:
    """Return what is booked, and what of the quota is used and reserved, in nano-dollars."""
    stub: Any = QuotaServiceStub(gateway.channel)
    request = quota_pb2.GetUsageRequest(parent="tenants/acme")
    request.start_time.FromSeconds(0)
    usage = await stub.GetUsage(request, metadata=OPERATOR, timeout=TIMEOUT_S)
    quota = await stub.GetQuota(
        quota_pb2.GetQuotaRequest(name=QUOTA), metadata=OPERATOR, timeout=TIMEOUT_S
    )
    booked = sum(row.usage.cost_usd_nanos for row in usage.rows)
    return booked, quota.used.cost_usd_nanos, quota.reserved.cost_usd_nanos


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


@pytest.mark.parametrize("accounts", [*STEPS])
async def test_killed_between_any_two_steps_nothing_is_lost_left_or_paid_again(
    accounts: str, provider: PlayedModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Before and after each thing that a call does outside of the process, in turn, until a call
    dies no more: another gateway answers it, and the books have what was paid."""
    where = accounts
    if accounts == "valkey":
        server: ValkeyServer = request.getfixturevalue("valkey")
        where = server.new_database()
    config = config_file(tmp_path / "c.toml", [provider.base_url])
    database_url = f"sqlite+aiosqlite:///{tmp_path}/shared.sqlite"
    async with (
        GatewayProcess(config, database_url, lease_s=3, accounts=where) as survivor,
        Mortals(survivor, tmp_path) as mortals,
    ):
        quota = quota_pb2.Quota(name=QUOTA, cost_usd_nanos_max=1_000 * WORST)
        stub: Any = QuotaServiceStub(survivor.channel)
        await stub.SetQuota(
            quota_pb2.SetQuotaRequest(quota=quota), metadata=OPERATOR, timeout=TIMEOUT_S
        )
        died_at: list[str] = []
        for step in itertools.count(1):
            booked_before, *_ = await spent_and_reserved(survivor)
            paid_before = len(provider.bodies)
            asking = generate("hello", output_tokens_max=3)
            asking.call.request_id = f"step {step}"
            carried = metadata(run=f"runs/{step}", cost_usd_nanos_max=10 * WORST)

            answer, passed = await mortals.ask(step, asking, carried)
            again = await survivor.stub.Generate(asking, metadata=carried, timeout=TIMEOUT_S)

            paid = len(provider.bodies) - paid_before
            booked, *_ = await spent_and_reserved(survivor)
            is_recorded = again.generation.attempts == 0
            assert again.generation.text == "hello there", passed
            if answer is not None or "after record" in passed:
                assert is_recorded, passed
            elif "before record" not in passed[:-1]:  # else its thread may be done with it
                assert not is_recorded, passed
            assert paid == (1 if is_recorded or "after ask" not in passed else 2), passed
            assert paid * COST <= booked - booked_before <= WORST + COST, passed
            if is_recorded:
                assert booked - booked_before == COST, passed
            if answer is not None:
                break
            died_at.append(passed[-1])

        async def nothing_is_held() -> bool:
            booked, used, reserved = await spent_and_reserved(survivor)
            return used >= booked and reserved == 0

        await eventually(nothing_is_held)

    # The answer may be out before the last of them, which does not hold it up.
    steps = STEPS[accounts]
    assert {moment.split()[1] for moment in died_at} == {*steps}
    assert 2 * len(steps) - 1 <= len(died_at) <= 2 * len(steps)
