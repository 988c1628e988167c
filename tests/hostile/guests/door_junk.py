# Expect: completed
# Then: kept
"""Requests to the host that are none: noise, wrong types, other encodings, too deep, too long."""

import _host

frames = [
    b"",
    b"\0" * 1000,
    bytes(range(256)) * 100,
    b"null",
    b"[]",
    b"5",
    b"{}",
    b'{"call":null}',
    b'{"call":"open"}',
    b'{"call":"close","session":1}',
    b'{"call":"run","session":2,"execution":1,"code":"1","report_variables":false}',
    b'{"call":"texts"}',
    b'{"call":"texts","mount":-1,"start":0}',
    b'{"call":"fill","mount":1e300,"text":0,"address":0}',
    b'{"call":"sub_calls"}',
    b'{"call":"cell"',
    b'{"call":"cell"}' * 2,
    '{"call":"cell"}'.encode("utf-16"),
    b'{"call":"\xff\xfe"}',
    b'{"call":' + b"[" * 200_000,
    b'{"call":' * 50_000,
    b'{"call":"ended","ending":' + b"1" * 400_000 + b"}",
]
refused = 0
for frame in frames:
    try:
        _host.call(frame)
    except (OSError, RuntimeError):
        refused += 1
assert refused == len(frames), refused
