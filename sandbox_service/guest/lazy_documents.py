"""Documents that together are too large for the session's memory: read one by one.

A mapping from name to text as the `dict` would be; a document that is huge itself is a
LazyText.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from .lazy_text import LazyText


class LazyDocuments(Mapping[str, Any]):
    """Documents by name, each read when it is asked for. Use it like a `dict`:

    context["name"], list(context), len(context), for name, text in context.items(): ...

    grep(pattern) searches all of them; its matches have a .document.
    """

    def __init__(self, mount: int, outlines: list[dict[str, Any]], value_bytes_max: int) -> None:
        self._mount = mount
        self._value_bytes_max = value_bytes_max
        self._places = {
            outline["name"]: (number, outline["units"], outline["is_lazy"])
            for number, outline in enumerate(outlines)
        }

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What it stands for: code asks `isinstance(context, dict)` to know how to go on."""
        return dict

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Any:
        text = self.lazy(name)
        return text if self._places[name][2] else str(text)

    def lazy(self, name: str) -> LazyText:
        """Return a document without reading it."""
        number, characters, _ = self._places[name]
        return LazyText(self._mount, number, characters, self._value_bytes_max, name)

    def is_of(self, mount: int) -> bool:
        """Tell whether it is a context, by the context's number."""
        return self._mount == mount

    def characters(self, name: str) -> int:
        """Return a document's length without reading it."""
        length: int = self._places[name][1]
        return length

    def __repr__(self) -> str:
        total = sum(place[1] for place in self._places.values())
        names = ", ".join(repr(name) for name in list(self._places)[:3])
        more = ", ..." if len(self._places) > 3 else ""
        return (
            f"<LazyDocuments: {len(self._places):,} of {total:,} characters together "
            f"({names}{more}); read one with context[name], search with grep(pattern)>"
        )

    def __reduce__(self) -> Any:
        raise TypeError("lazy documents cannot be copied or pickled: read one at a time")

    def __copy__(self) -> "LazyDocuments":
        return self

    def __deepcopy__(self, _: Any) -> "LazyDocuments":
        return self
