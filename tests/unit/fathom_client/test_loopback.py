"""What stays on this machine is free of charge and needs no warning; all else does."""

from __future__ import annotations

import pytest
from fathom_client.loopback import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_only_this_machine_reaches_a_loopback_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "localhost.example", ""])
def test_others_reach_any_other_address(host: str) -> None:
    """0.0.0.0 is every address of this machine."""
    assert not is_loopback(host)
