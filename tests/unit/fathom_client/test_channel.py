"""How the API key travels."""

from __future__ import annotations

import pytest
from fathom_client.channel import ApiKeyError, key_metadata


def test_a_key_is_sent_as_a_bearer_credential() -> None:
    assert key_metadata("k-1") == (("authorization", "Bearer k-1"),)
    assert key_metadata("") == ()


@pytest.mark.parametrize("key", ["a\nb", "a b", "schlüssel", "a\x00"])
def test_a_key_that_cannot_be_sent_is_refused_before_any_call_and_not_shown(key: str) -> None:
    """gRPC would abort the call with an error that nobody can tell from a defect."""
    with pytest.raises(ApiKeyError) as refused:
        key_metadata(key)

    assert key not in str(refused.value)
