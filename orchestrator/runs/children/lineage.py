"""What is above a child run: its parents up to the root, and what each may spend."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from common.run_token import RunToken, Subtree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lineage:
    """What the runs above a child may spend on work, as the token said under which it began."""

    root: str
    """`runs/{run}` at the root of the tree."""
    tokens_max: int | None
    """Of the root; None for no limit."""
    cost_usd_nanos_max: int | None
    """Of the root, in billionths of a US dollar; None for no limit."""
    tokens_spent: int
    """Of the root, as far as was known."""
    cost_usd_nanos_spent: int
    """The same, in billionths of a US dollar."""
    subtrees: tuple[Subtree, ...]
    """The runs between root and child, from the outermost."""
    key: str = ""
    """Name of the credential that the root was asked for with."""

    @classmethod
    def of_token(cls, token: RunToken) -> Self:
        """Return what is above the children of a token's bearer."""
        return cls(
            root=token.run,
            tokens_max=token.tokens_max,
            cost_usd_nanos_max=token.cost_usd_nanos_max,
            tokens_spent=token.tokens_spent,
            cost_usd_nanos_spent=token.cost_usd_nanos_spent,
            subtrees=token.subtrees,
            key=token.key,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make one of what `to_json` gave."""
        subtrees = tuple(Subtree(**each) for each in values["subtrees"])
        return cls(**{**values, "subtrees": subtrees})

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)

    @property
    def parent(self) -> str:
        """`runs/{run}` of the parent."""
        return self.subtrees[-1].name if self.subtrees else self.root

    @property
    def parent_allowance(self) -> tuple[int | None, int | None]:
        """Tokens and money that the parent may spend on work."""
        if not self.subtrees:
            return self.tokens_max, self.cost_usd_nanos_max
        nearest = self.subtrees[-1]
        return nearest.tokens_max, nearest.cost_usd_nanos_max
