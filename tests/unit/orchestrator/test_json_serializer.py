"""What the durable engine writes down is JSON, whatever it is."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from orchestrator.durable.json_serializer import JsonSerializer, RecordedError

SERIALIZER = JsonSerializer()


@pytest.mark.parametrize(
    "value", [None, 7, "text", "\x00\ud800", [1, [2]], {"args": ["a"], "kwargs": {}}, 0.5, True]
)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert SERIALIZER.deserialize(SERIALIZER.serialize(value)) == value


def test_an_error_comes_back_as_its_class_name_and_message() -> None:
    """A class that was renamed since must not strand a run."""
    text = SERIALIZER.serialize({"error": ValueError("too large")})

    found = SERIALIZER.deserialize(text)["error"]

    assert isinstance(found, RecordedError)
    assert (found.kind, found.message) == ("ValueError", "too large")
    assert str(found) == "ValueError: too large"
    assert SERIALIZER.serialize({"error": found}) == text


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes has no JSON form"):
        SERIALIZER.serialize({"context": b"large"})


def test_a_pickle_is_not_read() -> None:
    """Whoever can write to the database must not be able to run code in this process."""
    with pytest.raises(ValueError, match="Expecting value"):
        SERIALIZER.deserialize(pickle.dumps(print, protocol=0).decode())


@pytest.mark.parametrize("found", [{"fathom.error": "x"}, {"fathom.error": ["a", 1]}])
def test_what_only_looks_like_an_error_stays_what_it_is(found: Any) -> None:
    assert SERIALIZER.deserialize(SERIALIZER.serialize(found)) == found
