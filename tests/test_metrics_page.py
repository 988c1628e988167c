"""docs/operations.md names each metric that the services give, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from common import telemetry_names

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"


def test_the_page_has_every_metric_and_no_other() -> None:
    """Dashboards are made from the page, and alerts on a name that is gone never fire."""
    stated = {
        metric
        for cell in re.findall(r"^\| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \| \w+ \|", page(), re.MULTILINE)
        for metric in re.findall(r"`([a-z_.]+)`", cell)
    }

    given = {value for name, value in vars(telemetry_names).items() if name.startswith("METRIC_")}
    assert stated == given


def page() -> str:
    """Return the section on metrics."""
    section = re.search(r"^## Metrics\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    return section[1]
