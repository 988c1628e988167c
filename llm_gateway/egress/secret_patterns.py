"""What credentials look like: the published forms of keys and tokens, found in linear time.

All patterns are one RE2 expression, since texts of megabytes pass here on their way out; it
finds forms, not meaning, so a password in prose goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import re2

_PATTERNS = {
    "aws_access_key": r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
    "azure_storage_key": r"\bAccountKey=[A-Za-z0-9+/]{80,}={0,2}",
    "digitalocean_token": r"\bdo[opr]_v1_[0-9a-f]{64}\b",
    "github_token": r"\bgh[pousr]_[A-Za-z0-9]{36,251}\b|\bgithub_pat_[A-Za-z0-9_]{60,255}\b",
    "gitlab_token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "google_api_key": r"\bAIza[A-Za-z0-9_-]{35}",
    "google_oauth_token": r"\bya29\.[A-Za-z0-9_-]{20,}",
    "huggingface_token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "json_web_token": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "model_provider_key": r"\bsk-(?:[a-z0-9]+-)*[A-Za-z0-9_]{20,}[A-Za-z0-9_-]*",
    "npm_token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "private_key": (
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[^-]|-[^-])*(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----)?"
    ),
    "python_index_token": r"\bpypi-AgE[A-Za-z0-9_-]{50,}",
    "sendgrid_key": r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "slack_token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}",
    "stripe_key": r"\b[rs]k_live_[A-Za-z0-9]{16,}",
    "twilio_key": r"\bSK[0-9a-f]{32}\b",
    "url_credential": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']{1,100}:[^\s/@\"']{3,200}@",
}
_BETWEEN = "\n\n"
"""Ends every word."""
KINDS = tuple(_PATTERNS)
"""Names of what is found."""


@dataclass(frozen=True)
class Found:
    """A place in a text that has the form of a secret."""

    kind: str
    """One of KINDS, or `canary`."""
    start: int
    """First byte."""
    end: int
    """Byte after the last."""


class SecretPatterns:
    """Finds secrets; compiled once, used by every call."""

    def __init__(self) -> None:
        options = re2.Options()
        options.log_errors = False
        # The number of the group tells which alternative it was; inner ones capture nothing.
        joined = "|".join(f"({pattern})" for pattern in _PATTERNS.values())
        self._expression = re2.compile(joined.encode(), options)

    def has_any(self, texts: Sequence[str]) -> bool:
        """Whether one of several texts may hold something, at the price of looking once. What
        only stands in two of them together counts, too."""
        return self._expression.search(_BETWEEN.join(texts).encode()) is not None

    def find(self, text: bytes) -> Iterator[Found]:
        """Yield what a UTF-8 text holds, in order and without overlap."""
        for match in self._expression.finditer(text):
            yield Found(KINDS[match.lastindex - 1], *match.span())
