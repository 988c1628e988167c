"""The WebAssembly engine: one compiled guest, and instances of it.

The thin layer over wasmtime's C functions. It knows nothing of Python, WASI or sessions:
what an import does is a function of the caller's, and what a stop means is the caller's too.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandbox_service.guest_memory import GuestMemory, GuestMemoryError

THREAD_STACK_BYTES = 64 << 20
"""Stack that a thread needs to run a guest; wasmtime's own limit is well below it."""
_WASM_STACK_BYTES = 16 << 20
_ASYNC_STACK_BYTES = 24 << 20
FLAGS = "fuel,epoch,exceptions,stack16,v3"
"""Names everything in `_config` that changes compiled code; part of the cache key."""
_X86_64_V3 = (
    "cmpxchg16b",
    "sse3",
    "ssse3",
    "sse41",
    "sse42",
    "popcnt",
    "avx",
    "avx2",
    "fma",
    "bmi1",
    "bmi2",
    "lzcnt",
)
"""What every server processor since 2015 has. Code for exactly these runs on machines other
than the one that compiled it, such as the nodes that a container image is started on."""

HostFunction = Callable[..., int | None]
"""Called with the guest's integers, unsigned where 32 bits wide; returns an i32 or None."""


class GuestStoppedError(Exception):
    """The guest was stopped inside WebAssembly; its instance is dead.

    `cause` is what a host function raised, if one did; `trap_code` is wasmtime's name for
    the trap, or empty.
    """

    def __init__(self, message: str, trap_code: str, cause: BaseException | None) -> None:
        super().__init__(message)
        self.trap_code = trap_code
        self.cause = cause


def _config() -> wasmtime.Config:
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    # Must exceed max_wasm_stack before that is set, or wasmtime aborts the process.
    ffi.wasmtime_config_async_stack_size_set(config.ptr(), _ASYNC_STACK_BYTES)
    config.max_wasm_stack = _WASM_STACK_BYTES
    config.wasm_exceptions = True
    if platform.machine() == "x86_64":
        config.target = "x86_64-unknown-linux-gnu"  # else: the very processor of this host
        for feature in _X86_64_V3:
            config.cranelift_flag_enable(f"has_{feature}")
    return config


def compile_guest(wasm: Path, compiled: Path) -> None:
    """Compile a guest; minutes of CPU and gigabytes of memory, so best in a child process."""
    module = wasmtime.Module.from_file(wasmtime.Engine(_config()), str(wasm))
    compiled.write_bytes(module.serialize())


class GuestEngine:
    """One compiled guest, ready to be instantiated; shared by all sessions of a process."""

    def __init__(self, compiled: Path) -> None:
        """Map a compiled guest; raises wasmtime.WasmtimeError where it does not fit this host."""
        self._engine = wasmtime.Engine(_config())
        self._module = wasmtime.Module.deserialize_file(self._engine, str(compiled))
        # Imports are linked once for all instances, so a call finds its instance by the
        # thread it runs in: an instance belongs to one thread at a time.
        self._running = threading.local()
        # All callbacks are made here: where memory cannot become executable any more, as in
        # a jailed worker, an instance could have none of its own.
        self._callbacks: list[Any] = []
        self._watch = _watch(self._running)
        linker = wasmtime.Linker(self._engine)
        for item in self._module.imports:
            self._define(linker, item)
        self._prepared = linker.instantiate_pre(self._module)

    def tick(self) -> None:
        """Advance the epoch: each running guest calls its `on_tick` soon afterwards."""
        self._engine.increment_epoch()

    def instantiate(
        self,
        functions: Mapping[str, HostFunction],
        on_tick: Callable[[], None],
        memory_bytes_max: int,
    ) -> GuestInstance:
        """Make an instance whose imports are `functions`, by name.

        `on_tick` stops the guest by raising. Imports without a function stop it as well.
        """
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=memory_bytes_max, instances=1, memories=1, tables=16)
        ffi.wasmtime_store_epoch_deadline_callback(store.ptr(), self._watch, None, _NO_FINALIZER)
        store.set_epoch_deadline(1)
        return GuestInstance(store, self._prepared, self._running, functions, on_tick)

    def _define(self, linker: wasmtime.Linker, item: Any) -> None:
        kinds = tuple(str(kind) for kind in item.type.params)
        is_i64 = tuple(kind == "i64" for kind in kinds)
        if not set(kinds) <= {"i32", "i64"}:
            raise TypeError(f"import {item.name} takes {kinds}")
        name, running = str(item.name), self._running
        has_result = bool(item.type.results)

        @ffi.wasmtime_func_unchecked_callback_t  # type: ignore[untyped-decorator]
        def callback(_env: Any, _caller: Any, raw: Any, _count: int) -> int:
            instance: GuestInstance = running.instance
            try:
                instance.memory.refresh()
                result = instance.functions[name](
                    *[
                        raw[i].i64 if wide else raw[i].i32 & 0xFFFFFFFF
                        for i, wide in enumerate(is_i64)
                    ]
                )
                if has_result:
                    raw[0].i32 = result
            except BaseException as error:  # must not cross into wasmtime
                return instance.stop_with(error)
            return 0

        self._callbacks.append(callback)
        module_name, import_name = str(item.module).encode(), name.encode()
        error = ffi.wasmtime_linker_define_func_unchecked(
            linker.ptr(),
            ctypes.create_string_buffer(module_name),
            len(module_name),
            ctypes.create_string_buffer(import_name),
            len(import_name),
            item.type.ptr(),
            callback,
            None,
            _NO_FINALIZER,
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)  # noqa: SLF001


_NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_EPOCH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.POINTER(ffi.wasmtime_context_t),
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ffi.wasmtime_update_deadline_kind_t),
)


def _watch(running: threading.local) -> Any:
    """Return what wasmtime calls in a guest whose epoch is over: the `on_tick` of its instance."""

    @_EPOCH_CALLBACK  # type: ignore[untyped-decorator]
    def callback(_context: Any, _data: Any, delta: Any, _kind: Any) -> int:
        instance: GuestInstance = running.instance
        try:
            instance.on_tick()
        except BaseException as error:  # must not cross into wasmtime
            return instance.fail_with(error)
        delta[0] = 1
        return 0

    return callback


class GuestInstance:
    """One guest with its memory. Used by one thread at a time; dead after a stop."""

    def __init__(
        self,
        store: wasmtime.Store,
        prepared: Any,
        running: threading.local,
        functions: Mapping[str, HostFunction],
        on_tick: Callable[[], None],
    ) -> None:
        self.functions = functions
        self.on_tick = on_tick
        self._running = running
        self._cause: BaseException | None = None
        self._is_inside = False
        self._is_dead = False
        self._store = store
        self._context = self._store._context()  # noqa: SLF001
        exports = prepared.instantiate(self._store).exports(self._store)
        self._exports = exports
        self.memory = GuestMemory(self._context, exports["memory"]._memory)  # noqa: SLF001
        self._turn = exports["turn"]._func  # noqa: SLF001
        self._alloc = exports["host_alloc"]._func  # noqa: SLF001

    @property
    def fuel(self) -> int:
        """Instructions that may still run."""
        return self._store.get_fuel()

    @fuel.setter
    def fuel(self, value: int) -> None:
        self._store.set_fuel(value)

    def turn(self, source: bytes) -> int:
        """Run Python source in the guest's `__main__` and return its status: 0 done, else not.

        Raises GuestStoppedError when it was stopped, GuestMemoryError when there is no memory
        left to begin with, RuntimeError for a call from inside a running guest, or on a dead
        instance.
        """
        if self._is_inside or self._is_dead:
            raise RuntimeError("the guest cannot be entered")
        self._running.instance = self
        self._is_inside = True
        try:
            address = self.allocate(len(source))
            self.memory.write(address, source)
            return self._call(self._turn, address, len(source))
        finally:
            self._is_inside = False
            self._running.instance = None

    def allocate(self, size_bytes: int) -> int:
        """Return the address of fresh memory; only from within a turn or a host function.

        Raises GuestMemoryError where the guest has none left.
        """
        address = self._call(self._alloc, size_bytes) & 0xFFFFFFFF
        if not address and size_bytes:
            raise GuestMemoryError(f"the guest has no {size_bytes} bytes left")
        return address

    def stop_with(self, error: BaseException) -> int:
        """Remember the first cause of a stop and return a trap for wasmtime to raise."""
        self._note(error)
        message = b"stopped by the host"
        trap = ffi.wasmtime_trap_new(ctypes.create_string_buffer(message), len(message))
        return ctypes.cast(trap, ctypes.c_void_p).value or 0

    def fail_with(self, error: BaseException) -> int:
        """Remember the first cause of a stop and return an error for wasmtime to raise."""
        self._note(error)
        failure = ffi.wasmtime_error_new(ctypes.create_string_buffer(b"stopped"))
        return ctypes.cast(failure, ctypes.c_void_p).value or 0

    def close(self) -> None:
        """Free the memory now, not when the last reference goes."""
        self._is_dead = True
        self._exports = self._turn = self._alloc = None
        self._store.close()

    def _note(self, cause: BaseException) -> None:
        if self._cause is None:
            self._cause = cause

    def _call(self, function: Any, *arguments: int) -> int:
        values = (ffi.wasmtime_val_raw_t * max(len(arguments), 1))()
        for value, argument in zip(values, arguments, strict=False):
            value.i32 = ctypes.c_int32(argument).value
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        error = ffi.wasmtime_func_call_unchecked(
            self._context, ctypes.byref(function), values, len(values), ctypes.byref(trap)
        )
        self.memory.refresh()
        if error or trap:
            self._is_dead = True
            stopped = self._stopped(error, trap)
            raise stopped from stopped.cause
        return int(values[0].i32)

    def _stopped(self, error: Any, trap: Any) -> GuestStoppedError:
        if isinstance(self._cause, GuestStoppedError):  # inside a host function's own call
            return self._cause
        if trap:
            owned = wasmtime.Trap._from_ptr(trap)  # noqa: SLF001
            code = owned.trap_code
            return GuestStoppedError(str(owned), code.name if code else "", self._cause)
        failure = wasmtime.WasmtimeError._from_ptr(error)  # noqa: SLF001
        return GuestStoppedError(str(failure), "", self._cause)
