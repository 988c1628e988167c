# Expect: completed
# Then: kept
"""Asks for its own cell again and again; it gets what it has already, and nothing of others."""

import json

import _host

first = json.loads(_host.call(b'{"call":"cell"}'))
assert all(json.loads(_host.call(b'{"call":"cell"}')) == first for _ in range(500))
assert "asks for its own cell" in first["source"].lower()
