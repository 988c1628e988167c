"""Pages of lists, the same for every service."""

from __future__ import annotations

import pytest
from fathom.orchestrator.v1.run_pb2 import Run

from common.errors import InvalidFieldError
from common.page_tokens import (
    PAGE_BYTES_MAX,
    make_page_token,
    page_length,
    page_size,
    read_page_number,
    read_page_token,
)

HALF = Run(name="x" * (PAGE_BYTES_MAX // 2 - 8))


def test_a_page_token_comes_back() -> None:
    assert read_page_token("things", make_page_token("things", "17")) == "17"
    assert read_page_token("things", "") == ""


@pytest.mark.parametrize(
    "token",
    ["x", "é", "bm9wZQ==", make_page_token("things", "1")[:-4], make_page_token("others", "1")],
)
def test_another_lists_token_is_refused(token: str) -> None:
    """Else a client that changes its filter between pages would miss things unnoticed."""
    with pytest.raises(InvalidFieldError) as caught:
        read_page_token("things", token)

    assert caught.value.metadata == {"field": "page_token"}


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "٣", "9" * 19, "1\0"])
def test_a_made_up_number_is_refused(last: str) -> None:
    """The check of a token is no signature: whoever reads the source can make one."""
    with pytest.raises(InvalidFieldError) as caught:
        read_page_number("things", make_page_token("things", last))

    assert caught.value.metadata == {"field": "page_token"}


def test_a_number_comes_back() -> None:
    assert read_page_number("things", make_page_token("things", "9" * 18)) == 10**18 - 1
    assert read_page_number("things", "") == 0


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (500, 500), (501, 500)])
def test_a_page_has_a_size(asked: int, given: int) -> None:
    assert page_size(asked) == given


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidFieldError):
        page_size(-1)


@pytest.mark.parametrize(
    ("items", "size", "length"),
    [
        ([], 5, 0),
        ([Run()] * 4, 5, 4),
        ([Run()] * 6, 5, 5),
        ([HALF] * 4, 5, 2),
        ([HALF] * 4, 1, 1),
        ([Run(name="x" * PAGE_BYTES_MAX)] * 2, 5, 1),
    ],
)
def test_a_page_holds_what_was_asked_for_and_fits_a_message(
    items: list[Run], size: int, length: int
) -> None:
    """One item at least: a page of none would never end the list."""
    assert page_length(items, size) == length
