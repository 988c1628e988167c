"""Page tokens of ListSessions: the number of the last session shown, opaque to clients."""

from __future__ import annotations

import base64
import binascii

from common.errors import InvalidFieldError

_SIZE_DEFAULT = 50
_SIZE_MAX = 500
_PREFIX = b"sessions after "


def page_size(asked: int) -> int:
    """Return the size to use for the size asked; raises InvalidFieldError."""
    if asked < 0:
        raise InvalidFieldError("page_size", "must be at least 0")
    return min(asked or _SIZE_DEFAULT, _SIZE_MAX)


def make_page_token(last: int) -> str:
    """Return the token for the sessions after the one with this number."""
    return base64.urlsafe_b64encode(_PREFIX + str(last).encode()).decode()


def read_page_token(token: str) -> int:
    """Return the number in a token, 0 for an empty one; raises InvalidFieldError."""
    if not token:
        return 0
    try:
        data = base64.urlsafe_b64decode(token.encode("ascii"))
    except (binascii.Error, UnicodeError):
        data = b""
    digits = data.removeprefix(_PREFIX)
    if not data.startswith(_PREFIX) or not digits.isdigit():
        raise InvalidFieldError("page_token", "is not one that ListSessions gave")
    return int(digits)
