"""Whose resources a call works on. There is one tenant until callers are told apart."""

from __future__ import annotations

DEFAULT_TENANT = "default"
