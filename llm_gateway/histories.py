"""What runs' models have been asked so far: each turn of a run repeats all that was said before it,
and what was made of that once need not be made again.

A history is only ever a shorter way to what its messages say: a prompt without one is answered,
counted and told apart in the same way.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from llm_gateway.calls import Call
from llm_gateway.chat_format import messages_json
from llm_gateway.ledger.entries import begin_digest, extend_digest
from llm_gateway.prompts import Message, Prompt

MESSAGES_MIN = 4
"""Fewer are no history: a sub-model is asked once, with one or two."""
TEXT_BYTES_MAX = 2 << 20
"""A larger prompt has none: its JSON would be held from its arrival on, and not just while it is
sent."""
BYTES_MAX = 32 << 20
"""Of all that are remembered."""
_KEPT_S = 600.0
"""One that nobody has gone on with for so long is forgotten with the next call that is remembered:
its run has ended, most likely."""
_BYTES_A_MESSAGE, _BYTES_A_HISTORY = 500, 4_000
"""What one takes beside its texts."""

Key = tuple[str, str, str]
"""A tenant, a run of it, and the tier that it asks."""


class Clearance(NamedTuple):
    """What an egress policy found nothing in."""

    policy: object
    """Which: a later one may look for more."""
    messages: int
    """How many of the first ones."""
    text_bytes: int
    """UTF-8 bytes of these."""


class History:
    """The messages of one prompt, and what is made of them for any prompt to its tier that begins
    with them."""

    def __init__(self, prompt: Prompt, before: History | None = None) -> None:
        """`before` is one that the prompt begins with."""
        known = 0 if before is None else len(before.messages)
        new = prompt.messages[known:]
        self.tier = prompt.tier
        """Which was asked."""
        self.messages: tuple[Message, ...] = prompt.messages
        """All of the prompt's."""
        self.text_bytes = prompt.text_bytes
        """UTF-8 bytes of all."""
        # Put together, which copies it: what orjson gives has room for ten times as much.
        begun = b"[" if before is None else before.json[:-1] + b","
        self.json: bytes = before.json if before and not new else begun + messages_json(new)[1:]
        """As request bodies have them."""
        self.clearance: Clearance | None = None if before is None else before.clearance
        """Which of the first messages need not be looked through again."""
        self._digest = begin_digest(prompt.tier) if before is None else before.begun_digest()
        extend_digest(self._digest, new, is_first=before is None)
        texts_bytes = sum(sys.getsizeof(message.text) for message in self.messages)
        beside_bytes = _BYTES_A_HISTORY + _BYTES_A_MESSAGE * len(self.messages)
        self.held_bytes = texts_bytes + len(self.json) + sys.getsizeof(prompt.tier) + beside_bytes
        """Memory that it takes, about."""
        self.used_at = 0.0
        """When it was asked last, by a clock that nobody sets."""

    def begun_digest(self) -> Any:
        """Return the digest of a prompt, begun as far as its messages go, to go on with."""
        return self._digest.copy()

    def clear(self, policy: object) -> None:
        """Note that an egress policy found nothing in any of the messages."""
        self.clearance = Clearance(policy, len(self.messages), self.text_bytes)

    def cleared(self, policy: object) -> Clearance:
        """Return what a policy has let pass before."""
        if self.clearance is None or self.clearance.policy is not policy:
            return Clearance(policy, 0, 0)
        return self.clearance


class Histories:
    """The latest of each run and tier; those that were not asked for longest are forgotten. Where
    others ask the same tier for the same run in between, each begins anew."""

    def __init__(
        self, *, bytes_max: int = BYTES_MAX, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`now` is a clock in seconds that nobody sets."""
        self._bytes_max = bytes_max
        self._now = now
        self._known: OrderedDict[Key, History] = OrderedDict()
        self.held_bytes = 0
        """Memory that all take, about."""

    def recalled(self, call: Call) -> Call:
        """Return a call whose prompt has its history, which is remembered for the next; the same
        call where the prompt is too short for one, or too large."""
        prompt = call.prompt
        if len(prompt.messages) < MESSAGES_MIN or prompt.text_bytes > TEXT_BYTES_MAX:
            return call
        key = call.token.tenant, call.token.asking_run, prompt.tier
        before = self._known.pop(key, None)
        if before is not None:
            self.held_bytes -= before.held_bytes
            if prompt.messages[: len(before.messages)] != before.messages:
                before = None
        history = History(prompt, before)
        self._remember(key, history)
        return dataclasses.replace(call, prompt=dataclasses.replace(prompt, history=history))

    def _remember(self, key: Key, history: History) -> None:
        history.used_at = self._now()
        self._known[key] = history
        self.held_bytes += history.held_bytes
        while self._known and self._is_over(next(iter(self._known.values()))):
            _, oldest = self._known.popitem(last=False)
            self.held_bytes -= oldest.held_bytes

    def _is_over(self, oldest: History) -> bool:
        return self.held_bytes > self._bytes_max or oldest.used_at < self._now() - _KEPT_S
