"""Amounts as people type them: `$5`, `10m`, `2M`. Each is a click parameter type."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import ClassVar

import click

_DURATION = re.compile(r"^(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?$")
_COUNT = re.compile(r"^(\d+(?:\.\d+)?)([kKmMgG]?)$")
_USD = re.compile(r"^\$?(\d+(?:\.\d{1,9})?)$")


class UsdType(click.ParamType[Decimal]):
    """US dollars, such as `5`, `$0.25`; 0 is an amount."""

    name = "usd"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Decimal:
        """Return the dollars."""
        match = _USD.match(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no amount of US dollars, such as 5 or $0.25", param, ctx)
        return Decimal(match[1])


class DurationType(click.ParamType[float]):
    """A length of time, such as `90`, `90s`, `10m`, `1h30m`, in seconds; above 0."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds."""
        text = str(value).strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            text += "s"
        match = _DURATION.match(text)
        seconds = 0.0
        if match is not None:
            hours, minutes, rest = (float(part or 0) for part in match.groups())
            seconds = hours * 3600 + minutes * 60 + rest
        if seconds <= 0:
            self.fail(f"{value!r} is no length of time, such as 90s, 10m or 1h30m", param, ctx)
        return seconds


class CountType(click.ParamType[int]):
    """A whole number with an optional unit, such as `200`, `1.5k` or `2M`."""

    name = "count"
    _units: ClassVar[dict[str, int]] = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}

    def __init__(self, *, least: int = 0) -> None:
        """Refuse numbers below `least`."""
        self._least = least

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number."""
        match = _COUNT.match(str(value).strip())
        count = Decimal(-1)
        if match is not None:
            count = Decimal(match[1]) * self._units[match[2].lower()]
        if count < self._least or count != int(count):
            self.fail(f"{value!r} is no whole number of at least {self._least}", param, ctx)
        return int(count)
