"""Services as child processes: started, waited for, ended. The scripted model is one at hand."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom_client.local_stack import LocalStack, StackEndedError
from fathom_client.processes import ServiceProcess, ServiceStartError

from tests.support.eventually import eventually

MODULE = "fathom_demo.scripted_model"


@pytest.fixture
async def starting(tmp_path: Path) -> AsyncIterator[list[ServiceProcess]]:
    """Processes that are ended with the test."""
    processes: list[ServiceProcess] = []
    yield processes
    for process in processes:
        await process.stop()


def service(folder: Path, *arguments: str, module: str = MODULE) -> ServiceProcess:
    address_file = folder / "address"
    return ServiceProcess(
        "model",
        module,
        arguments=("--address-file", str(address_file), *arguments),
        environment={"ONLY": "this"},
        address_file=address_file,
        log=folder / "log",
        listening_at=lambda address: (("--listen", address), {}),
    )


async def test_a_service_is_ready_once_it_serves(
    tmp_path: Path, starting: list[ServiceProcess]
) -> None:
    process = service(tmp_path)
    starting.append(process)
    await process.start()

    host, _, port = (await process.wait_ready()).rpartition(":")

    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    await writer.wait_closed()


async def test_an_address_of_an_earlier_start_is_not_believed(
    tmp_path: Path, starting: list[ServiceProcess]
) -> None:
    (tmp_path / "address").write_text("127.0.0.1:1\n")
    process = service(tmp_path)
    starting.append(process)
    await process.start()

    assert await process.wait_ready() != "127.0.0.1:1"


async def test_a_service_gets_the_environment_it_is_given_and_no_more(
    tmp_path: Path, starting: list[ServiceProcess]
) -> None:
    """A key in the user's environment must not reach it by accident."""
    process = service(tmp_path)
    starting.append(process)
    await process.start()
    await process.wait_ready()

    environment = Path(f"/proc/{process.pid}/environ").read_text().split("\0")

    assert [entry for entry in environment if entry] == ["ONLY=this"]


async def test_a_service_that_ends_while_it_starts_shows_its_log(
    tmp_path: Path, starting: list[ServiceProcess]
) -> None:
    process = service(tmp_path, "--no-such-option")
    starting.append(process)
    await process.start()

    with pytest.raises(ServiceStartError, match="status 2") as caught:
        await process.wait_ready()

    assert "--no-such-option" in str(caught.value)
    assert str(tmp_path / "log") in str(caught.value)
    assert caught.value.service == "model"


def test_a_log_shows_what_is_for_people_and_not_the_records_before_it(tmp_path: Path) -> None:
    """The records fill the screen; why the service ended is said in words, after them."""
    process = service(tmp_path)
    process.log.write_text('{"message": "starts"}\ngateway.toml: price: is missing\n')

    assert "starts" not in process.log_tail()
    assert "price: is missing" in process.log_tail()

    process.log.write_text('{"message": "starts"}\n')
    assert "starts" in process.log_tail()


async def test_stopping_ends_the_process(tmp_path: Path, starting: list[ServiceProcess]) -> None:
    process = service(tmp_path)
    starting.append(process)
    await process.start()
    await process.wait_ready()
    pid = process.pid

    await process.stop()

    assert not Path(f"/proc/{pid}").exists()


async def test_a_service_that_ends_by_itself_is_noticed(
    tmp_path: Path, starting: list[ServiceProcess]
) -> None:
    process = service(tmp_path)
    starting.append(process)
    await process.start()
    await process.wait_ready()
    ended = asyncio.create_task(process.wait_end())

    await (await asyncio.create_subprocess_exec("kill", "-KILL", str(process.pid))).wait()

    assert await asyncio.wait_for(ended, timeout=30) == "signal 9"


async def test_a_service_that_is_killed_is_started_again_at_its_address(
    tmp_path: Path, starting: list[ServiceProcess]
) -> None:
    """Others hold its address: neighbours, and clients that wait for the connection."""
    process = service(tmp_path)
    starting.append(process)
    await process.start()
    address = await process.wait_ready()
    told: list[str] = []
    keeping = asyncio.create_task(LocalStack(address, [process]).keep_up(told.append))

    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: bool(told))
    await eventually(lambda: process.log.read_text().count("scripted model") == 2)
    await eventually(lambda: (tmp_path / "address").exists())

    assert told == ["the model ended (signal 9)"]
    assert (tmp_path / "address").read_text().strip() == address
    assert "draining" not in process.log.read_text()
    keeping.cancel()


async def test_a_service_that_ends_again_and_again_is_given_up(tmp_path: Path) -> None:
    """Starting it for ever would hide why it ends, and nobody would look."""
    started: list[int] = []

    class Ending(ServiceProcess):
        async def wait_end(self) -> str:
            return "status 1"

        async def start_again(self) -> None:
            started.append(1)

    process = Ending("model", MODULE, environment={}, address_file=tmp_path, log=tmp_path / "log")
    process.log.write_text("no room left\n")

    with pytest.raises(StackEndedError, match=r"the model ended \(status 1\)[^$]*no room left"):
        await LocalStack("", [process]).keep_up(lambda _: None)

    assert len(started) == 5


async def test_a_service_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Nobody is left to end it: the kernel has to."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), timeout=30))

    parent.send_signal(signal.SIGKILL)
    await parent.wait()

    await eventually(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Tell whether a process is there and is no mere entry that nobody has collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def be_a_parent(folder: Path) -> None:
    """Start a service, print its process id and wait to be killed."""
    process = service(folder)
    await process.start()
    await process.wait_ready()
    print(process.pid, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(be_a_parent(Path(sys.argv[1])))
