"""Pages of lists: how much is on one, and the token that tells where the next one begins, opaque
to clients and checked when it comes back. Tokens hold nothing secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

from google.protobuf.message import Message

from common.errors import InvalidFieldError

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 500
PAGE_BYTES_MAX = 2 << 20
"""A page of large items ends early: it must fit a message."""
_CHECK_BYTES = 8
_NUMBER_DIGITS_MAX = 18


def page_size(asked: int) -> int:
    """Return the size to use for the size asked; raises InvalidFieldError."""
    if asked < 0:
        raise InvalidFieldError("page_size", "must be at least 0")
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def page_length(items: Sequence[Message], size: int) -> int:
    """Return how many of the items go on a page of `size`: at least one, where there is one."""
    left = PAGE_BYTES_MAX
    for length, item in enumerate(items[:size]):
        left -= item.ByteSize()
        if left < 0:
            return max(length, 1)
    return min(len(items), size)


def make_page_token(scope: str, last: str) -> str:
    """Return the token for what comes after `last`. `scope` names the list and its filter."""
    return base64.urlsafe_b64encode(_check(scope, last) + last.encode()).decode()


def read_page_token(scope: str, token: str) -> str:
    """Return what `make_page_token` was given, empty for an empty token; raises
    InvalidFieldError for a token of another list, another filter or no list at all."""
    if not token:
        return ""
    try:
        data = base64.urlsafe_b64decode(token.encode("ascii"))
        last = data[_CHECK_BYTES:].decode()
    except (binascii.Error, UnicodeError):
        raise _error() from None
    if data[:_CHECK_BYTES] != _check(scope, last) or "\0" in last:  # no text to PostgreSQL
        raise _error()
    return last


def read_page_number(scope: str, token: str) -> int:
    """Return the number that a token was made of, 0 for an empty one; raises as `read_page_token`.
    The check is no signature: what comes back need not be what was given."""
    last = read_page_token(scope, token)
    return page_number(last) if last else 0


def page_number(text: str) -> int:
    """Return a number out of a token, which a database can compare; raises InvalidFieldError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _NUMBER_DIGITS_MAX):
        raise _error()
    return int(text)


def _check(scope: str, last: str) -> bytes:
    return hashlib.blake2b(f"{scope}\0{last}".encode(), digest_size=_CHECK_BYTES).digest()


def _error() -> InvalidFieldError:
    return InvalidFieldError("page_token", "is not one that this list gave for this filter")
