# Expect: completed
# Then: kept
# Limits: memory_mib=512
# Finds: host-door
"""Asks one question of a million and a half messages, each an object to everybody behind the door."""

import _host

message = b'{"role":"user","text":"a"}'
options = b'"is_batch":false,"tier":"","output_tokens_max":null,"temperature":null'
prompt = b",".join([message] * 1_500_000)
try:
    _host.call(b'{"call":"sub_calls","prompts":[[' + prompt + b"]]," + options + b"}")
except OSError:
    print("refused")
else:
    raise AssertionError("it was asked")
