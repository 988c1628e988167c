"""A table of a TOML file, read key by key: a wrong type, a missing key and a key that nobody
read are errors that name file and key. What the values mean is the reader's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NoReturn

from common.config import ConfigError

_REQUIRED: Any = object()
_COUNT_MAX = 2**53
"""Whole numbers up to here are exact everywhere."""
_SECONDS_MAX = 1e9
"""Thirty years; clocks have no room for everything."""


class Table:
    """One table; reading a key takes it out, and `end` refuses what is left."""

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        self._where = where
        self._values = dict(values)
        self._known: list[str] = []

    def fail(self, key: str, remedy: str) -> NoReturn:
        """Raise ConfigError for a key of this table; an empty key is the table itself."""
        raise ConfigError(f"{self._where}{': ' if key else ''}{key}: {remedy}")

    def end(self) -> None:
        """Refuse the keys that were not read."""
        for key in self._values:
            known = ", ".join(dict.fromkeys(self._known))
            self.fail(key, f"there is no such key; the keys are {known}")

    def names(self) -> list[str]:
        """Return the keys that are left, in the file's order."""
        return list(self._values)

    def pop(self, key: str, default: Any = _REQUIRED) -> Any:
        """Take a value of any type."""
        self._known.append(key)
        value = self._values.pop(key, default)
        if value is _REQUIRED:
            self.fail(key, "is missing; it is required")
        return value

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """Take a text; one that is required must not be empty."""
        value = self.pop(key, default)
        if not isinstance(value, str) or (default is _REQUIRED and not value):
            self.fail(key, "must be a text in quotes, not empty")
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str) -> str:
        """Take one of several texts."""
        value = self.text(key, default)
        if value not in allowed:
            self.fail(key, f"must be one of {', '.join(allowed)}")
        return value

    def count(self, key: str, default: int) -> int:
        """Take a whole number of at least 1."""
        value = self.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fail(key, "must be a whole number of at least 1")
        if value > _COUNT_MAX:
            self.fail(key, f"must be at most {_COUNT_MAX}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Take true or false."""
        value = self.pop(key, default)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return value

    def seconds(self, key: str, default: float) -> float:
        """Take a number above 0."""
        value = float(self._number(key, default))
        if not 0 < value <= _SECONDS_MAX:
            self.fail(key, f"must be a number of seconds above 0, at most {_SECONDS_MAX:.0f}")
        return value

    def share(self, key: str, default: float) -> float:
        """Take a number from 0 to 1."""
        value = self._number(key, default)
        if not 0 <= value <= 1:
            self.fail(key, "must be a share from 0 to 1")
        return float(value)

    def usd(self, key: str, default: Decimal = _REQUIRED) -> Decimal:
        """Take an amount of US dollars, 0 or more."""
        value = self._number(key, default)
        if not 0 <= value < 1_000_000:
            self.fail(key, "must be an amount of US dollars, 0 or more")
        return Decimal(value)

    def text_list(self, key: str, allowed: Sequence[str]) -> tuple[str, ...]:
        """Take a list of different texts out of `allowed`; none where the key is missing."""
        values = self.pop(key, [])
        self._check_texts(key, values, allowed)
        return tuple(values)

    def steps(self, key: str, allowed: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Take a list of different texts out of `allowed`, some of them grouped in inner lists."""
        values = self.pop(key)
        if not isinstance(values, list):
            self.fail(key, "must be a list of different texts")
        steps = [value if isinstance(value, list) else [value] for value in values]
        self._check_texts(key, [text for step in steps for text in step], allowed)
        return tuple(map(tuple, steps))

    def names_in_order(
        self, key: str, allowed: Sequence[str], default: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Take a list of texts out of `allowed`, at least one and some perhaps twice."""
        values = self.pop(key, list(default))
        if not isinstance(values, list) or not values:
            self.fail(key, "must be a list of texts, at least one")
        for value in values:
            if value not in allowed:
                self.fail(key, f"{value!r} is not one of {', '.join(allowed)}")
        return tuple(values)

    def texts_by_name(self, key: str) -> dict[str, str]:
        """Take a table of texts; empty where the key is missing."""
        values = self.pop(key, {})
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            self.fail(key, "must be a table of texts")
        return values

    def table(self, key: str) -> Table:
        """Take a table."""
        return self.sub_table(key, self.pop(key))

    def tables(self, key: str) -> dict[str, Table]:
        """Take a table of tables, at least one."""
        table = self.table(key)
        tables = {name: table.table(name) for name in table.names()}
        if not tables:
            self.fail(key, f"needs at least one table [{key}.NAME]")
        return tables

    def optional_tables(self, key: str) -> dict[str, Table]:
        """Take a table of tables; empty where the key is missing."""
        table = self.sub_table(key, self.pop(key, {}))
        return {name: table.table(name) for name in table.names()}

    def table_list(self, key: str) -> list[Table]:
        """Take an array of tables, at least one."""
        values = self.pop(key, [])
        if not isinstance(values, list) or not values:
            self.fail(key, f"needs at least one table [[{key}]]")
        return [self.sub_table(f"{key}[{index}]", value) for index, value in enumerate(values)]

    def sub_table(self, key: str, value: Any) -> Table:
        """Return `value`, which stands at `key`, as a table."""
        if not isinstance(value, dict):
            self.fail(key, "must be a table")
        return Table(f"{self._where}: {key}", value)

    def _check_texts(self, key: str, values: Any, allowed: Sequence[str]) -> None:
        if not isinstance(values, list) or len(set(map(str, values))) != len(values):
            self.fail(key, "must be a list of different texts")
        for value in values:
            if value not in allowed:
                self.fail(key, f"{value!r} is not one of {', '.join(allowed)}")

    def _number(self, key: str, default: Any) -> Any:
        value = self.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            self.fail(key, "must be a number")
        if not Decimal(value).is_finite():
            self.fail(key, "must be a finite number")
        return value
