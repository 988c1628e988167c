"""The two steps of preparation that run the engine, each in a child process of `prepare`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from sandbox_service import frames
from sandbox_service.engine import (
    THREAD_STACK_BYTES,
    GuestEngine,
    GuestInstance,
    HostFunction,
    compile_guest,
)
from sandbox_service.guest_build import runtime_sources
from sandbox_service.profiles import PROFILES
from sandbox_service.worker import guest_calls
from sandbox_service.worker.image import WarmImage
from sandbox_service.worker.surroundings import FixedSurroundings
from sandbox_service.worker.wasi import Wasi

_WARM_MEMORY_BYTES_MAX = 1 << 30
_WARM_FUEL = 1_000_000_000_000
_WARM_CLOCK_NS = 1_767_225_600 * 10**9
"""Equal files on every host, or a checkpoint of one would make no sense on another."""
_OPEN_FILES_MAX = 64
_REHEARSALS = 40
_REHEARSED_CELLS = ("None", "print(end='')", "1 / 0", "x = (")
"""Cells that leave nothing behind and take the ways that most cells take."""
PACKAGE = "fathom_guest"
"""Name of our package inside the guest."""
START = f"__import__('sys').modules['{PACKAGE}'].session.start()".encode()
# What is frozen is never visited by a collection, so its pages stay shared.
_TIDY = (
    b"import gc, linecache; linecache.clearcache(); gc.collect(); gc.freeze(); del gc, linecache"
)
RUN = b"__cell__()"


def run(step: str, *paths: str) -> None:
    """Run a step by name on the big stack that the guest needs."""
    steps: dict[str, Callable[..., None]] = {
        "compile_guest": compile_guest,
        "write_warm_images": write_warm_images,
    }
    failures: list[BaseException] = []

    def target() -> None:
        try:
            steps[step](*map(Path, paths))
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    threading.stack_size(THREAD_STACK_BYTES)
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def write_warm_images(compiled: Path, library: Path, folder: Path) -> None:
    """Start a guest, load our runtime into it, and write its memory to a file a profile."""
    engine = GuestEngine(compiled)
    output = _Output()
    wasi = Wasi(output, library.read_bytes(), _OPEN_FILES_MAX)
    rehearsal = _Rehearsal()
    functions: dict[str, HostFunction] = {**wasi.functions(), "call": rehearsal.call}
    instance = engine.instantiate(functions, _nothing, _WARM_MEMORY_BYTES_MAX)
    output.instance = rehearsal.instance = instance
    wasi.memory = instance.memory
    instance.fuel = _WARM_FUEL
    _turn(instance, _loader(runtime_sources()).encode(), output)
    for profile, code in PROFILES.items():
        if code:
            _turn(instance, _rehearsed(code).encode(), output)
        # The interpreter specialises code that it has run a few times: let the image have that.
        for _ in range(_REHEARSALS):
            _turn(instance, START, output)
            _turn(instance, RUN, output)
        _turn(instance, _TIDY, output)
        WarmImage.write(folder / profile, instance.memory)
    instance.close()


def _rehearsed(code: str) -> str:
    """Return the program that runs a profile's code, and leaves no name of it behind."""
    return f"exec({code!r}, {{'__name__': '__rehearsal__'}})"


def _turn(instance: GuestInstance, source: bytes, output: _Output) -> None:
    status = instance.turn(source)
    if status:
        text = output.written.decode("utf-8", "replace")
        raise RuntimeError(f"the guest did not start (status {status}):\n{text}")


def _loader(sources: dict[str, str]) -> str:
    """Return the program that makes our package inside the guest, leaving no other trace."""
    return f"""
def _load(package_name, sources):
    import builtins, sys, types
    package = sys.modules[package_name] = types.ModuleType(package_name)
    package.__path__ = []
    for name, source in sources.items():
        module = types.ModuleType(f"{{package_name}}.{{name}}")
        module.__package__ = package_name
        module.__file__ = f"<fathom {{name}}>"
        # A copy: what a cell puts in the place of `print` or `len` is the cell's own.
        module.__builtins__ = dict(vars(builtins))
        sys.modules[module.__name__] = module
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        setattr(package, name, module)
    package.session = package.prelude.prepare()
_sources = {json.dumps(sources)}
_load({PACKAGE!r}, _sources)
del _load, _sources
"""


class _Output:
    """What WASI needs while a guest is prepared: keeps what it writes, and fixes the rest."""

    instance: GuestInstance
    """Set before the guest runs."""

    def __init__(self) -> None:
        self.written = b""
        nature = frames.Determinism(clock_ns=_WARM_CLOCK_NS, seed=0)
        surroundings = FixedSurroundings(nature, 0, lambda: _WARM_FUEL - self.instance.fuel)
        self.clock_ns = surroundings.clock_ns
        self.random_bytes = surroundings.random_bytes
        self.sleep = surroundings.sleep

    def output_room(self) -> int:
        """Return the bytes that are still kept."""
        return (1 << 16) - len(self.written)

    def write_output(self, stream: int, data: bytes, size_bytes: int) -> None:  # noqa: ARG002
        """Keep some output."""
        self.written += data


class _Rehearsal:
    """Answers the runtime as a host does that has no contexts, and cells of every ending."""

    instance: GuestInstance
    """Set before the guest runs."""

    def __init__(self) -> None:
        self._cells = 0

    def call(self, start: int, size: int, result_start: int, result_size: int) -> int:
        """Answer one request."""
        memory = self.instance.memory
        request = guest_calls.decode(memory.read(start, size))
        answer = b""
        if isinstance(request, guest_calls.FetchMounts):
            answer = b"[]"
        elif isinstance(request, guest_calls.FetchCell):
            source = _REHEARSED_CELLS[self._cells % len(_REHEARSED_CELLS)]
            self._cells += 1
            cell = guest_calls.Cell(
                source=source,
                number=0,
                run="",
                report=True,
                value_bytes_max=1 << 20,
                check="record",
            )
            answer = msgspec.json.encode(cell)
        address = self.instance.allocate(len(answer))
        memory.write(address, answer)
        memory.write_u32(result_start, address)
        memory.write_u32(result_size, len(answer))
        return 0


def _nothing() -> None:
    """Preparation has no deadline."""
