"""Reads `[routing]` of the configuration file: which tier stands in for another, and when."""

from __future__ import annotations

from collections.abc import Sequence

from common.toml_table import Table
from llm_gateway.catalog import Routing


def routing_from(table: Table, tiers: Sequence[str]) -> Routing:
    """Return what a table says, which may be empty; `tiers` are those of the file."""
    usual = Routing()
    larger = table.text("larger_window_tier", "")
    if larger and larger not in tiers:
        table.fail("larger_window_tier", f"{larger!r} is not one of {', '.join(tiers)}")
    downgrade = table.texts_by_name("downgrade")
    for tier in [*downgrade, *downgrade.values()]:
        if tier not in tiers:
            table.fail("downgrade", f"{tier!r} is not one of {', '.join(tiers)}")
    routing = Routing(
        tiers_by_depth=table.names_in_order("tiers_by_depth", tiers, usual.tiers_by_depth),
        larger_window_tier=larger,
        downgrade=downgrade,
        downgrade_share=table.share("downgrade_share", usual.downgrade_share),
        hedge_share=table.share("hedge_share", usual.hedge_share),
    )
    table.end()
    return routing
