"""The folders of servers that tests start."""

from __future__ import annotations

import uuid

from tests.support.scratch_folder import ScratchFolder


def test_a_folder_whose_owner_is_gone_is_removed_by_the_next_one() -> None:
    """A test run that is killed would leave a database behind, again and again."""
    kind = uuid.uuid4().hex
    kept, abandoned = ScratchFolder(kind), ScratchFolder(kind)
    (abandoned.path / "data").write_text("much")
    abandoned.let_go()

    newest = ScratchFolder(kind)

    try:
        assert kept.path.exists()
        assert not abandoned.path.exists()
    finally:
        kept.remove()
        newest.remove()
    assert not newest.path.exists()
