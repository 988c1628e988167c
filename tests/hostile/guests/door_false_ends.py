# Expect: completed
# Then: kept
"""Reports of the cell's end that no runtime would write; the one by the runtime is what counts."""

import _host

END = b'{"call":"ended","ending":"%s","error":%s,"final":%s,"variables":[%s]}'
VARIABLE = b'{"name":"%s","type":"t","length":%s,"preview":"%s"}'
FINAL_OF = b'{"text":"%s","is_json":false,"variable":""}'
ERROR = b'{"type":"%s","message":"","traceback":""}'
refused = 0
frames = [
    END % (b"timed_out", b"null", b"null", b""),
    END % (b"trapped", b"null", b"null", b""),
    END % (b"", b"null", b"null", b""),
    END % (b"completed", b"null", FINAL_OF % (b"x" * ((1 << 20) + 1)), b""),
    END % (b"completed", b"null", FINAL_OF % ("\u20ac".encode() * 500_000), b""),
    END % (b"completed", ERROR % (b"x" * 257), b"null", b""),
    END % (b"completed", b"null", b"null", VARIABLE % (b"x" * 257, b"1", b"")),
    END % (b"completed", b"null", b"null", VARIABLE % (b"x", b"-1", b"")),
    END % (b"completed", b"null", b"null", VARIABLE % (b"x", b"9223372036854775808", b"")),
    END % (b"completed", b"null", b"null", VARIABLE % (b"x", b"1", b"y" * 201)),
    END % (b"completed", b"null", b"null", b",".join([VARIABLE % (b"x", b"1", b"")] * 201)),
]
for frame in frames:
    try:
        _host.call(frame)
    except (OSError, RuntimeError):
        refused += 1
assert refused == len(frames), refused
_host.call(END % (b"raised", ERROR % b"Forged", FINAL_OF % b"forged", b""))
_host.call(END % (b"exited", b"null", b"null", VARIABLE % (b"forged", b"7", b"forged")))
