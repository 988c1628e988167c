"""The command names itself as the user can type it, and shows progress at a bearable price."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import click
import pytest
from fathom.orchestrator.v1 import context_pb2
from fathom_client.access import Access
from fathom_client.client import Client
from fathom_client.command.ask import upload
from fathom_client.command.invocation import address_of, name_of_command
from fathom_client.command.terminal import Terminal
from fathom_client.uploads import Upload


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command in a virtual environment below the working directory."""
    path = tmp_path / "venv" / "bin" / "fathom"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(path.parent))
    return path


def test_a_command_that_the_shell_found_is_named_alone(program: Path) -> None:
    assert name_of_command(program) == "fathom"


def test_a_path_that_was_typed_is_named_though_it_is_on_the_path(program: Path) -> None:
    """Make puts it on the PATH of what it runs, and not on the user's."""
    assert name_of_command(Path("venv/bin/fathom")) == "venv/bin/fathom"


def test_a_command_off_the_path_is_named_by_its_path(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert name_of_command(program) == "venv/bin/fathom"


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        (" 127.0.0.1:7311 ", "127.0.0.1:7311"),
        ("http://h:7311/", "h:7311"),
        ("[::1]:7311", "[::1]:7311"),
        ("https://fathom.example", "https://fathom.example"),
        ("unix:/run/fathom", "unix:/run/fathom"),
        ("", ""),
    ],
)
def test_a_server_may_be_named_as_other_tools_want_it(typed: str, address: str) -> None:
    assert address_of(typed, Access()) == address


@pytest.mark.parametrize("typed", ["fathom.example", "http://fathom.example", "host:", "host:grpc"])
def test_a_server_without_a_port_is_wrong_usage(typed: str) -> None:
    """gRPC would look for port 443, and tell of a host that cannot be reached."""
    with pytest.raises(click.UsageError, match="HOST:PORT"):
        address_of(typed, Access())


async def test_the_size_of_all_files_is_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told once a file: with 20,000 files, adding up each time takes many seconds."""
    sums: list[int] = []

    def add_up(_: Upload) -> int:
        sums.append(5)
        return sums[-1]

    monkeypatch.setattr(Upload, "size_bytes", property(add_up))

    class Uploading:
        async def upload(
            self, source: Upload, *, on_progress: Callable[[int], None]
        ) -> context_pb2.Context:
            for sent_bytes in range(5):
                on_progress(sent_bytes)
            return context_pb2.Context(name="contexts/c1")

    source = Upload(kind=context_pb2.Context.KIND_DOCUMENTS, files=())

    await upload(cast("Client", Uploading()), Terminal({}, quiet=True), source)

    assert len(sums) == 1
