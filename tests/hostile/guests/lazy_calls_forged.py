# Expect: completed
# Then: kept
# Context: lazy
"""Questions about texts that there are not, past the class that would not ask them."""

import json

import _host

refused = answered = 0
for mount, text in ((1, 0), (0, 1), (1 << 62, 0), (0, (1 << 63) - 1), (-1, 0), (0, 0)):
    for request in (
        {"call": "read", "start": 0, "stop": 10},
        {"call": "read", "start": 10, "stop": 0},
        {"call": "read", "start": 1 << 62, "stop": (1 << 63) - 1},
        {"call": "span", "start": 1 << 62, "stop": 0},
        {"call": "find", "needle": "a", "start": 5, "stop": 1, "what": "first"},
        {"call": "find", "needle": "a", "start": 0, "stop": 1 << 62, "what": "last"},
        {
            "call": "grep",
            "pattern": "a",
            "ignore_case": True,
            "start": 9,
            "stop": 1,
            "limit": 1,
            "time_s": 0,
        },
    ):
        try:
            _host.call(json.dumps(request | {"mount": mount, "text": text}).encode())
            answered += 1
        except (OSError, RuntimeError):
            refused += 1
assert refused >= 35, (refused, answered)
assert answered <= 7, (refused, answered)
