"""Configuration from the environment: one frozen dataclass a service, read once at start.

A variable with the service's prefix that names no field is an error, so that typos are loud.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

_MOST = {int: 2**62, float: 1e9}
"""What numbers may be: such counts fit every message, and thirty years every clock."""
_NUMBER = re.compile(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?")
_SETTING = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b|^[a-z]+(?=: )")
"""A field's name in a message, and what else looks like one."""


class ConfigError(Exception):
    """The environment does not make a valid configuration; the message names the variable."""


class Secret:
    """A text that never shows itself: `repr`, `str` and logs give a mask."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text itself. Call it where the secret is used, and keep no copy."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret('***')" if self._value else "Secret('')"

    __str__ = __repr__


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What every service's configuration has."""

    listen: str = "127.0.0.1:0"
    """Address that gRPC listens on, `host:port`; port 0 takes any free one."""
    address_file: Path | None = None
    """File that the bound address is written to once the service is ready."""
    metrics_listen: str = ""
    """Address of the Prometheus endpoint, `host:port`; empty for none."""
    metrics_address_file: Path | None = None
    """File that the Prometheus endpoint's bound address is written to."""
    drain_s: float = 10.0
    """Seconds that calls under way get to end after SIGTERM."""
    drain_notice_s: float = 0.0
    """Seconds between NOT_SERVING and refusing calls, for balancers to notice."""
    reflection: bool = True
    """Offer gRPC server reflection; turn it off in production."""
    concurrent_rpcs_max: int = 1000
    """Calls served at a time; more are refused with RESOURCE_EXHAUSTED."""
    connection_age_max_s: float = 0.0
    """Seconds after which a connection is asked to reconnect; 0 is never."""
    log_level: str = "INFO"
    """Least level that is logged: DEBUG, INFO, WARNING or ERROR."""
    tls_certificate_file: Path | None = None
    """Certificate that the service shows, with those it was signed by, in PEM form. With it gRPC
    speaks TLS alone; a renewed one is taken over by itself."""
    tls_key_file: Path | None = None
    """The certificate's private key, unencrypted."""
    tls_client_ca_file: Path | None = None
    """Certificates that a caller's must be signed by; with it nobody without one is served."""
    tls_ca_file: Path | None = None
    """Certificates that those of other services must be signed by. With it they are called over
    TLS, and shown the service's own certificate."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            most = _MOST.get(type(value))
            if most is not None and not 0 <= value <= most:  # nor is NaN
                raise ConfigError(f"{field.name}: must be a number from 0 to {most:g}")
        self.check_positive("concurrent_rpcs_max")
        if self.log_level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ConfigError(f"log_level: {self.log_level!r} is not DEBUG, INFO, WARNING or ERROR")
        split_address(self.listen)
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ConfigError("tls_certificate_file and tls_key_file: one needs the other")
        if self.tls_client_ca_file is not None and self.tls_certificate_file is None:
            raise ConfigError("tls_client_ca_file: needs tls_certificate_file beside it")
        if self.metrics_listen:
            split_address(self.metrics_listen)

    def check_positive(self, *names: str) -> None:
        """Raise ConfigError for the first of these settings that is 0."""
        for name in names:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: must be above 0")


C = TypeVar("C", bound=ServerConfig)


def load(cls: type[C], environ: Mapping[str, str], *, prefix: str) -> C:
    """Make a configuration from the variables that begin with `prefix`.

    Field `foo_s` is read from `{prefix}FOO_S`. Raises ConfigError, which names the variable, for
    one that is no field's and for a value that its type or its field refuses.
    """
    hints = typing.get_type_hints(cls)
    names = {prefix + field.name.upper(): field.name for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(prefix):
            continue
        if variable not in names:
            known = ", ".join(sorted(names))
            raise ConfigError(f"{variable}: there is no such setting; the settings are {known}")
        try:
            values[names[variable]] = _parse(text, hints[names[variable]])
        except ValueError as error:
            raise ConfigError(f"{variable}: {error}") from error
    try:
        return cls(**values)
    except ConfigError as error:
        variables = {name: variable for variable, name in names.items()}
        told = _SETTING.sub(lambda found: variables.get(found[0], found[0]), str(error))
        raise ConfigError(told) from error


def describe(config: ServerConfig) -> dict[str, object]:
    """Return the effective settings for the log, with secrets masked."""
    shown: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        plain = value is None or isinstance(value, bool | int | float | str)
        shown[field.name] = value if plain else str(value)
    return shown


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` (or `[v6]:port`); raises ConfigError where it is not one."""
    host, separator, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port[:6]) <= 65535
    if not separator or not host or not is_port or not host.isprintable():
        raise ConfigError(f"{address!r} is not an address of the form host:port")
    return host, int(port)


def _parse(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:
        if text == "":
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return _PARSERS[hint](text)


def _parse_bool(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is not true or false") from None


def _number(kind: Callable[[str], Any], text: str, word: str) -> Any:
    try:
        if not _NUMBER.fullmatch(text):  # Python's own readers take more: `1_0`, `nan`, a newline
            raise ValueError
        return kind(text)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not {word}") from None


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    bool: _parse_bool,
    int: lambda text: _number(int, text, "a whole number"),
    float: lambda text: _number(float, text, "a number"),
    Path: Path,
    Secret: Secret,
}
