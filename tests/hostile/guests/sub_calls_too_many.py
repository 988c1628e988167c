# Expect: completed
# Then: kept
# Limits: memory_mib=256 sub_calls=5
"""More prompts than one batch may have, past the runtime and through it."""

import _host

PROMPT = b'[{"role":"user","text":"x"}]'
QUESTION = (
    b'{"call":"sub_calls","prompts":[%s],"is_batch":true,"tier":"%s",'
    b'"output_tokens_max":%s,"temperature":%s}'
)
frames = [
    QUESTION % (b",".join([PROMPT] * 100_001), b"", b"null", b"null"),
    QUESTION % (b"", b"", b"null", b"null"),
    QUESTION % (b"[]", b"", b"null", b"null"),
    QUESTION % (PROMPT, b"x" * 257, b"null", b"null"),
    QUESTION % (PROMPT, b"", b"0", b"null"),
    QUESTION % (PROMPT, b"", b"2147483648", b"null"),
    QUESTION % (PROMPT, b"", b"null", b"-0.1"),
    QUESTION % (PROMPT, b"", b"null", b"2.1"),
    QUESTION % (b'[{"role":"tool","text":"x"}]', b"", b"null", b"null"),
    QUESTION % (b'[{"role":"user","text":""}]', b"", b"null", b"null"),
    QUESTION % (b'[{"role":"user","text":"\xff\xfe"}]', b"", b"null", b"null"),
]
refused = 0
for frame in frames:
    try:
        _host.call(frame)
    except (OSError, RuntimeError):
        refused += 1
assert refused == len(frames), refused
