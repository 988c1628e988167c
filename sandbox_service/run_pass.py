"""A session's run token, as those who bring it to other services hold it: it may be renewed while
they are about it. What it permits is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RunPass:
    """Read whenever something is asked, and never kept."""

    token: str
    """As it was signed; empty for none."""
