"""The quick way to search ASCII finds what the general way finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_service.worker import search

_PATTERNS = (
    *("silver", "(?i)SKI", "[^k]s", r"\w+s\b", r"(k|s)+"),
    *(r"\pL\d", r".s", r"\x{212a}|k", "ß|s", "^s$"),
)


@given(text=st.text(alphabet="skS Ke1\nlvir"), ignore_case=st.booleans())
@pytest.mark.parametrize("pattern", _PATTERNS)
def test_a_pattern_finds_the_same_in_ascii_however_it_is_compiled(
    pattern: str, text: str, *, ignore_case: bool
) -> None:
    """Unicode's further cases of `s` and `k` are no ASCII, so leaving them out changes nothing."""
    general = search.compiled(pattern, ignore_case=ignore_case)
    quick = search.compiled(pattern, ignore_case=ignore_case, is_ascii=True)

    data = text.encode()
    found = [match.span() for match in quick.finditer(data)]

    assert found == [match.span() for match in general.finditer(data)]


def test_an_unknown_syntax_is_refused_either_way() -> None:
    with pytest.raises(search.PatternError, match="RE2"):
        search.compiled("(?=a)", ignore_case=True, is_ascii=True)
