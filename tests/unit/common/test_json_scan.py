"""The items of large JSON, found window by window, against Python's own parser."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blob_index import json_scan
from common.blob_index.json_index import TOO_LARGE, WHOLE, JsonIndex
from common.blob_index.source import UnindexableError
from common.blob_index.text_index import IndexFormatError

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = st.text('ab"\\é€\U0001f600\n {}[],:', max_size=12)
DOCUMENTS = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=40,
)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make whatever is longer than a line too large to be parsed at once."""
    monkeypatch.setattr(json_scan, "WINDOW_BYTES", 90)


def read(data: bytes) -> Any:
    """Index a document and put it together again from its tables."""
    blob, target = os.memfd_create("blob"), os.memfd_create("index")
    try:
        os.write(blob, data)
        json_scan.build(blob, len(data), target)
        return value(blob, JsonIndex.checked(target, len(data)), 0, 0)
    finally:
        os.close(blob)
        os.close(target)


def value(blob: int, index: JsonIndex, table: int, position: int) -> Any:
    (entry,) = index.entries(table, position, position + 1)
    if entry.child in (WHOLE, TOO_LARGE):
        return json.loads(os.pread(blob, entry.stop - entry.start, entry.start))
    kind, count = index.table(entry.child)
    values = [value(blob, index, entry.child, i) for i in range(count)]
    if kind == "array":
        return values
    entries = index.entries(entry.child, 0, count)
    keys = [os.pread(blob, e.start - e.key, e.key).decode().rstrip(" \t\n\r:") for e in entries]
    return dict(zip(map(json.loads, keys), values, strict=True))


@given(DOCUMENTS, st.sampled_from([None, 0, 3]), st.booleans())
def test_a_document_put_together_from_its_items_is_the_document(
    document: Any, indent: int | None, ensure_ascii: bool
) -> None:
    data = json.dumps(document, indent=indent, ensure_ascii=ensure_ascii).encode()

    assert read(data) == json.loads(data)


@given(DOCUMENTS, st.data())
def test_what_python_refuses_is_refused(document: Any, data: st.DataObject) -> None:
    """A wrong byte anywhere, also between the windows."""
    text = bytearray(json.dumps(document).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b'",:{}[]x\\ '))
    try:
        expected = json.loads(text)
    except ValueError:
        # A string too large to be parsed is refused when it is read.
        with pytest.raises((UnindexableError, json.JSONDecodeError)):
            read(bytes(text))
    else:
        assert read(bytes(text)) == expected


@pytest.mark.parametrize("data", [b"", b" ", b"[1,]", b'{"a":1,}', b"[1 2]", b"[", b"\xff", b"1 2"])
def test_what_is_no_json_says_so(data: bytes) -> None:
    with pytest.raises(UnindexableError, match="not JSON"):
        read(data)


def test_a_byte_order_mark_is_let_pass() -> None:
    assert read(b"\xef\xbb\xbf" + json.dumps(["x" * 80] * 3).encode()) == ["x" * 80] * 3


def test_nesting_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_scan, "WINDOW_BYTES", 1 << 20)

    with pytest.raises(UnindexableError, match="JSON"):
        read(b"[" * 500_000)


def test_a_string_larger_than_a_window_is_known_to_be_so() -> None:
    document = ["a", 'x\\"' * 100, "b"]

    assert read(json.dumps(document).encode()) == document


@pytest.mark.parametrize("place", [0, 9, 20, 45, -1])
def test_a_damaged_index_is_no_index(place: int) -> None:
    data = json.dumps(["x" * 50] * 10).encode()
    blob, target = os.memfd_create("blob"), os.memfd_create("index")
    os.write(blob, data)
    json_scan.build(blob, len(data), target)
    size = os.fstat(target).st_size
    place %= size
    os.pwrite(target, bytes([os.pread(target, 1, place)[0] ^ 1]), place)

    with pytest.raises(IndexFormatError):
        JsonIndex.checked(target, len(data))

    os.close(blob)
    os.close(target)
