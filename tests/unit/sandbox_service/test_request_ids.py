"""Request ids: what is remembered of a call, and for how long nothing more than that."""

from __future__ import annotations

import dataclasses
import weakref

import pytest

from common.errors import RequestIdReusedError
from sandbox_service.request_ids import RequestIds


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that could be large."""

    contexts: list[str]


async def made() -> object:
    return object()


async def test_a_repeat_gets_the_first_outcome_and_another_request_is_refused() -> None:
    ids: RequestIds[object] = RequestIds()

    first = await ids.once("a", Request(["x"]), made)

    assert await ids.once("a", Request(["x"]), made) is first
    assert await ids.once("b", Request(["x"]), made) is not first
    with pytest.raises(RequestIdReusedError):
        await ids.once("a", Request(["y"]), made)


async def test_the_request_itself_is_not_kept() -> None:
    """One that describes a hundred thousand documents takes tens of megabytes."""
    ids: RequestIds[object] = RequestIds()
    request = Request(["x"])
    kept = weakref.ref(request)

    await ids.once("a", request, made)
    del request

    assert kept() is None
