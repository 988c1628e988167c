"""Large arrays and objects of a JSON context: their items are parsed as they are asked for.

An item is what `json.loads` gives; one that is too large for that is lazy itself.
"""

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from .lazy_text import asked

_PAGE = 1_000
"""Items that are asked for at a time; the host gives fewer of large ones."""
_KEYS_MAX = 300_000
"""Keys that are kept to find items by."""


class _Table:
    """The items of one container, the last page of them at hand."""

    def __init__(self, mount: int, number: int, count: int) -> None:
        self.mount = mount
        self.number = number
        self.count = count
        self._page: tuple[int, list[list[Any]]] = (0, [])

    def items(self, start: int, stop: int, *, keys_only: bool = False) -> Iterator[list[Any]]:
        """Yield items of the container as the host has them: key, what, value."""
        while start < stop:
            page = self._asked(start, min(start + _PAGE, stop), keys_only)
            yield from page
            start += len(page)

    def item(self, position: int) -> list[Any]:
        """Return one item, reading some ahead where items are asked for in order."""
        start, page = self._page
        if not start <= position < start + len(page):
            is_next = position == start + len(page) and position > 0
            stop = min(position + (_PAGE if is_next else 1), self.count)
            self._page = start, page = position, self._asked(position, stop, keys_only=False)
        return page[position - start]

    def value(self, item: list[Any]) -> Any:
        """Return what an item stands for."""
        _, what, value = item
        if what == "value":
            return value
        if what == "large":
            raise ValueError(f"this item is a string of {value:,} bytes: too large to be read")
        number, count = value
        kind = LazyItems if what == "array" else LazyMapping
        return kind(self.mount, number, count)

    def _asked(self, start: int, stop: int, keys_only: bool) -> list[list[Any]]:
        request = {
            "call": "items",
            "mount": self.mount,
            "text": 0,
            "table": self.number,
            "start": start,
            "stop": stop,
            "keys_only": keys_only,
        }
        page: list[list[Any]] = json.loads(str(asked(request), "utf-8"))
        if not page:
            raise OSError("the context is not what it was")
        return page


class LazyItems(Sequence[Any]):
    """A huge JSON array, its items read on demand. Use it like a `list`:

    len(context), context[0], context[10:20], for item in context: ...

    Slices are real lists. There is no changing it: collect what you need in a list of your own.
    """

    def __init__(self, mount: int, number: int, count: int) -> None:
        self._table = _Table(mount, number, count)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What it stands for: code asks `isinstance(context, list)` to know how to go on."""
        return list

    def __len__(self) -> int:
        return self._table.count

    def __getitem__(self, key: Any) -> Any:
        table = self._table
        if isinstance(key, slice):
            start, stop, step = key.indices(table.count)
            if step == 1:
                return [table.value(item) for item in table.items(start, stop)]
            return [self[position] for position in range(start, stop, step)]
        position = operator.index(key)
        position += table.count if position < 0 else 0
        if not 0 <= position < table.count:
            raise IndexError("list index out of range")
        return table.value(table.item(position))

    def __iter__(self) -> Iterator[Any]:
        table = self._table
        return (table.value(item) for item in table.items(0, table.count))

    def __repr__(self) -> str:
        return f"<LazyItems: a JSON array of {self._table.count:,} items, read as they are needed>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("lazy items cannot be copied or pickled: take a slice of them")


class LazyMapping(Mapping[str, Any]):
    """A huge JSON object, its items read on demand. Use it like a `dict`:

    context["key"], list(context), for key, value in context.items(): ...

    There is no changing it: collect what you need in a dict of your own.
    """

    def __init__(self, mount: int, number: int, count: int) -> None:
        self._table = _Table(mount, number, count)
        self._positions: dict[str, int] | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What it stands for: code asks `isinstance(context, dict)` to know how to go on."""
        return dict

    def __len__(self) -> int:
        return self._table.count

    def __iter__(self) -> Iterator[str]:
        items = self._table.items(0, self._table.count, keys_only=True)
        return (key for key, _, _ in items)

    def __contains__(self, key: object) -> bool:
        return key in self._found()

    def __getitem__(self, key: str) -> Any:
        return self._table.value(self._table.item(self._found()[key]))

    def items(self) -> Any:
        """Return an iterator over keys and values, which reads ahead."""
        table = self._table
        return ((item[0], table.value(item)) for item in table.items(0, table.count))

    def values(self) -> Any:
        """Return an iterator over the values, which reads ahead."""
        return (value for _, value in self.items())

    def _found(self) -> dict[str, int]:
        if self._positions is None:
            if self._table.count > _KEYS_MAX:
                raise ValueError(
                    f"an object of {self._table.count:,} keys cannot be looked up by key: go "
                    "through it once with `for key, value in context.items()`"
                )
            self._positions = {key: position for position, key in enumerate(self)}
        return self._positions

    def __repr__(self) -> str:
        table = self._table
        keys = ", ".join(
            repr(item[0]) for item in table.items(0, min(3, table.count), keys_only=True)
        )
        more = ", ..." if table.count > 3 else ""
        return (
            f"<LazyMapping: a JSON object of {table.count:,} items ({keys}{more}), "
            "read as they are needed>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lazy mapping cannot be copied or pickled: take the items you need")
