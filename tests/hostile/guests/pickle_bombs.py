# Expect: completed
# Then: kept
"""Pickles that call functions of the host, were there any."""

import pickle

refused = 0
for data in (
    b"cos\nsystem\n(S'id'\ntR.",
    b"cposix\nsystem\n(S'id'\ntR.",
    b"csubprocess\ncheck_output\n((S'id'\nltR.",
    b"cbuiltins\nopen\n(S'/etc/passwd'\ntR.",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"(" * 100_000 + b".",
    b"]" + b"2" * 50 + b"a" * 50 + b".",
):
    try:
        pickle.loads(data)
    except Exception:
        refused += 1
assert refused >= 6, refused
