"""The three services as processes that speak TLS and ask for certificates, and those who call them.

One authority has signed all certificates: what tells callers apart is the names in them.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.orchestrator.v1 import orchestrator_service_pb2
from fathom.orchestrator.v1.orchestrator_service_pb2_grpc import OrchestratorServiceStub
from fathom.sandbox.v1 import sandbox_service_pb2
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.config import Secret
from common.errors import ReceivedError, received
from common.run_token import ORCHESTRATOR, RUN_TOKEN_METADATA, SANDBOX, RunTokenSigner
from common.tls import credentials_from_files
from tests.acceptance.conftest import Installed
from tests.acceptance.test_path import descendants, is_program, run
from tests.support.certificates import Authority, Pair
from tests.support.child_processes import end_with_parent
from tests.support.gateway import token

GATEWAY = "fathom-gateway"
ANALYST = "analyst"


@dataclasses.dataclass(frozen=True)
class TlsStack:
    """Services started by `fathom up` with certificates."""

    authority: Authority
    """Whom everybody trusts."""
    pairs: dict[str, Pair]
    """Certificates by name."""
    environ: dict[str, str]
    """Environment in which the command finds these services, and is the analyst."""
    home: Path
    """Their state."""
    pid: int
    """Process id of `fathom up`."""

    def address(self, service: str) -> str:
        """Return where a service listens, `host:port`."""
        return (self.home / "logs" / f"{service}.address").read_text().strip()

    def channel(self, service: str, name: str) -> grpc.aio.Channel:
        """Return a channel to a service that shows the certificate of a name."""
        pair = self.pairs[name]
        shown = credentials_from_files(self.authority.file, pair.certificate, pair.key)
        return grpc.aio.secure_channel(self.address(service), shown)

    def run_token(self, presenter: str) -> str:
        """Return a token as a run has it, as who took over this machine could make one."""
        (pid,) = (child for child in descendants(self.pid) if is_program(child, "llm_gateway"))
        entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
        environ = dict(entry.split("=", 1) for entry in entries if entry)
        signer = RunTokenSigner(Secret(environ["FATHOM_GATEWAY_RUN_TOKEN_KEY"]))
        return signer.mint(token(presenters=(presenter,)))


@pytest.fixture(scope="module")
def stack(
    installed: Installed, user_environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TlsStack]:
    """Run `fathom up --scripted-model` with certificates until the tests are done."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    pairs = {name: authority.pair(name) for name in (ORCHESTRATOR, SANDBOX, GATEWAY)}
    pairs[ANALYST] = authority.pair(ANALYST, is_server=False)
    environ = user_environ | {"FATHOM_HOME": str(home)}
    settings = dict(environ)
    for name in (ORCHESTRATOR, SANDBOX, GATEWAY):
        prefix = f"{name.replace('-', '_').upper()}_TLS_"
        settings |= {
            f"{prefix}CERTIFICATE_FILE": str(pairs[name].certificate),
            f"{prefix}KEY_FILE": str(pairs[name].key),
            f"{prefix}CA_FILE": str(authority.file),
            f"{prefix}CLIENT_CA_FILE": str(authority.file),
        }
    environ |= {
        "FATHOM_TLS_CA_FILE": str(authority.file),
        "FATHOM_TLS_CERTIFICATE_FILE": str(pairs[ANALYST].certificate),
        "FATHOM_TLS_KEY_FILE": str(pairs[ANALYST].key),
    }
    command = [installed.fathom, "up", "--scripted-model", "--listen", "127.0.0.1:0"]
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=settings, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=log, text=True, preexec_fn=end_with_parent,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("https://"), (home / "up.log").read_text()
        yield TlsStack(authority, pairs, environ, home, process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


async def refusal(call: Any) -> ReceivedError:
    """Read the responses of a call that is refused, and return the error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call if hasattr(call, "__aiter__") else _responses(call):
            pass
    return received(caught.value)


async def _responses(call: Any) -> AsyncIterator[Any]:
    yield await call


def bringing(run_token: str) -> dict[str, Any]:
    """Return the options of a call that brings a run token."""
    return {"metadata": ((RUN_TOKEN_METADATA, run_token),), "timeout": 20}


def test_a_run_with_child_runs_is_answered_over_tls_alone(
    installed: Installed, stack: TlsStack
) -> None:
    """Every arrow is used: root calls, cells, sub-calls, child runs back up."""
    folder = stack.home / "offices"
    folder.mkdir()
    for name, code in {"Bergen": "5150", "Porto": "1234"}.items():
        text = f"The vault code of the {name} office is {code}.\n" + "Filler line.\n" * 50
        (folder / f"{name}.txt").write_text(text)
    question = "What is the vault code in each of these files?"

    status, printed, told = run(
        [installed.fathom, "ask", "--json", question, str(folder)], stack.environ
    )

    assert status == 0, told
    assert {"Bergen.txt: 5150", "Porto.txt: 1234"} <= {
        line.rpartition("/")[2] for line in json.loads(printed)["answer"].splitlines()
    }


def test_who_shows_no_certificate_is_told_what_to_do(installed: Installed, stack: TlsStack) -> None:
    environ = {k: v for k, v in stack.environ.items() if k != "FATHOM_TLS_CERTIFICATE_FILE"}
    del environ["FATHOM_TLS_KEY_FILE"]

    status, _, told = run([installed.fathom, "runs", "list"], environ)

    assert status == 5
    assert "--tls-certificate-file" in told


@pytest.mark.parametrize("service", ["orchestrator", "sandbox", "gateway"])
async def test_a_certificate_of_another_authority_is_served_by_nobody(
    stack: TlsStack, tmp_path: Path, service: str
) -> None:
    """Whatever names are in it."""
    forged = Authority(tmp_path, "stranger").pair(ORCHESTRATOR)
    shown = credentials_from_files(stack.authority.file, forged.certificate, forged.key)
    async with grpc.aio.secure_channel(stack.address(service), shown) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", [ANALYST, ORCHESTRATOR])
async def test_a_caller_cannot_use_the_sandboxs_token_at_the_gateway(
    stack: TlsStack, name: str
) -> None:
    """A run token that got out is of no use to who is not the one that it was given to."""
    request, options = gateway_service_pb2.ListModelsRequest(), bringing(stack.run_token(SANDBOX))
    async with stack.channel("gateway", name) as channel:
        error = await refusal(GatewayServiceStub(channel).ListModels(request, **options))
    async with stack.channel("gateway", SANDBOX) as channel:
        listed: Any = await GatewayServiceStub(channel).ListModels(request, **options)

    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.metadata == {"problem": "replayed"}
    assert listed.models


async def test_a_caller_cannot_start_child_runs_as_the_sandbox_does(stack: TlsStack) -> None:
    request = orchestrator_service_pb2.RunChildRequest(question="Why?")
    async with stack.channel("orchestrator", ANALYST) as channel:
        stub = OrchestratorServiceStub(channel)
        error = await refusal(stub.RunChild(request, **bringing(stack.run_token(SANDBOX))))

    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.metadata == {"problem": "replayed"}


@pytest.mark.parametrize("name", [ANALYST, SANDBOX, GATEWAY])
async def test_the_sandbox_serves_the_orchestrator_alone(stack: TlsStack, name: str) -> None:
    """Its sessions hold contexts of all tenants, and checkpoints of them can be restored."""
    request = sandbox_service_pb2.GetSandboxInfoRequest()
    async with stack.channel("sandbox", name) as channel:
        error = await refusal(SandboxServiceStub(channel).GetSandboxInfo(request, timeout=20))
    async with stack.channel("sandbox", ORCHESTRATOR) as channel:
        served: Any = await SandboxServiceStub(channel).GetSandboxInfo(request, timeout=20)

    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert error.metadata == {"permission": "caller"}
    assert served.walls
