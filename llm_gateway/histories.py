"""What runs' models have been asked so far: each turn of a run repeats all that was said before it,
and what was made of that once need not be made again.

A history is only ever a shorter way to what its messages say: a prompt without one is answered,
counted and told apart in the same way.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any, NamedTuple

from common.run_token import RunToken
from llm_gateway.chat_format import messages_json
from llm_gateway.ledger.entries import begin_digest, extend_digest
from llm_gateway.prompts import Message, Prompt

MESSAGES_MIN = 4
"""Fewer are no history: a sub-model is asked once, with one or two."""
BYTES_MAX = 32 << 20
"""Of all that are remembered."""
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
    """The messages of one prompt, and what is made of them for any prompt that begins with them."""

    def __init__(self, prompt: Prompt, before: History | None = None) -> None:
        """`before` is one that the prompt's messages begin with."""
        known = 0 if before is None else len(before.messages)
        new = prompt.messages[known:]
        self.messages: tuple[Message, ...] = prompt.messages
        """All of the prompt's."""
        self.text_bytes = sum(len(message.text.encode()) for message in new)
        """UTF-8 bytes of all."""
        # Put together, which copies it: what orjson gives has room for ten times as much.
        begun = b"[" if before is None else before.json[:-1] + b","
        self.json: bytes = before.json if before and not new else begun + messages_json(new)[1:]
        """As request bodies have them."""
        self.clearance: Clearance | None = None
        """Which of the first messages need not be looked through again."""
        if before is None:
            self._digest = begin_digest(prompt.tier)
        else:
            self.text_bytes += before.text_bytes
            self.clearance = before.clearance
            self._digest = before.digest()
        extend_digest(self._digest, new, is_first=before is None)
        texts_bytes = sum(sys.getsizeof(message.text) for message in self.messages)
        beside_bytes = _BYTES_A_HISTORY + _BYTES_A_MESSAGE * len(self.messages)
        self.held_bytes = texts_bytes + len(self.json) + sys.getsizeof(prompt.tier) + beside_bytes
        """Memory that it takes, about; a tier is known by any name that a caller gives it."""

    def digest(self) -> Any:
        """Return the digest of a prompt, begun as far as its messages go."""
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
    """The latest of each run; those that were not asked for longest are forgotten."""

    def __init__(self, *, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held_bytes = 0
        self._known: OrderedDict[Key, History] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """About the memory that all take."""
        return self._held_bytes

    def messages(self, token: RunToken, tier: str) -> tuple[Message, ...]:
        """Return what a run asked last; none where that is not known."""
        known = self._known.get(_key(token, tier))
        return () if known is None else known.messages

    def of(self, token: RunToken, prompt: Prompt) -> History | None:
        """Return the history that a prompt is, and remember it; None for one that is too short."""
        if len(prompt.messages) < MESSAGES_MIN:
            return None
        key = _key(token, prompt.tier)
        before = self._known.pop(key, None)
        if before is not None:
            self._held_bytes -= before.held_bytes
            if prompt.messages[: len(before.messages)] != before.messages:
                before = None
        history = History(prompt, before)
        self._remember(key, history)
        return history

    def _remember(self, key: Key, history: History) -> None:
        if history.held_bytes > self._bytes_max:
            return
        self._known[key] = history
        self._held_bytes += history.held_bytes
        while self._held_bytes > self._bytes_max:
            _, oldest = self._known.popitem(last=False)
            self._held_bytes -= oldest.held_bytes


def _key(token: RunToken, tier: str) -> Key:
    return token.tenant, token.asking_run, tier
