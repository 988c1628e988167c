"""The contexts that benchmarks mount: what is said of them must be true, or nothing loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.blobs import NEEDLE, Blobs


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("ascii", 0, 0x7F),
        ("latin1", 0x80, 0xFF),
        ("cjk", 0x100, 0xFFFF),
        ("emoji", 0x10000, 0x10FFFF),
    ],
)
def test_a_text_has_the_size_and_shape_that_it_is_said_to_have(
    tmp_path: Path, kind: str, least: int, most: int
) -> None:
    """The kind decides how Python stores the text, and so what its figure is a figure of."""
    blobs = Blobs(tmp_path / "objects")

    mount = blobs.text(kind, 10_007)

    data = (blobs.folder / mount.blob_key).read_bytes()
    text = data.decode()
    assert (len(data), len(text)) == (mount.size_bytes, mount.text_shape.characters)
    assert max(map(ord, text)) == mount.text_shape.code_point_max
    assert least <= mount.text_shape.code_point_max <= most


def test_a_log_ends_with_the_one_line_to_find(tmp_path: Path) -> None:
    """A search that finds it has read all of the text."""
    blobs = Blobs(tmp_path / "objects")

    mount = blobs.log(3_000_000)

    text = (blobs.folder / mount.blob_key).read_text("ascii")
    assert len(text) == mount.size_bytes == mount.text_shape.characters
    assert text.index(NEEDLE) == len(text) - len(NEEDLE) - 1


def test_a_sparse_text_takes_its_size_and_little_of_the_disk(tmp_path: Path) -> None:
    """10 GB are to be written and read again in seconds."""
    blobs = Blobs(tmp_path / "objects")

    mount = blobs.sparse(100 << 20, 32 << 20)

    status = (blobs.folder / mount.blob_key).stat()
    assert status.st_size == mount.size_bytes == 100 << 20
    assert 4 << 20 <= status.st_blocks * 512 < 10 << 20


def test_a_removed_blob_is_gone(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "objects")
    mount = blobs.text("ascii", 100)

    blobs.remove(mount)

    assert not (blobs.folder / mount.blob_key).exists()
