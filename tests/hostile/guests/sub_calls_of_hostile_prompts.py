# Expect: completed
# Then: kept
"""Prompts that are no prompts: strange types, subclasses that lie, surrogates, other roles."""


class Text(str):
    def __len__(self):
        return 0

    def __bool__(self):
        return False

    def __iter__(self):
        raise SystemExit


class Message(dict):
    def get(self, key, default=None):
        return [key]


refused = 0
prompts = [None, 5, b"bytes", "", [], [5], [{}], [{"role": "x", "content": "y"}], Message(), [[]]]
for prompt in (*prompts, [Message()], [{"role": "user", "content": 5}]):
    try:
        llm_query(prompt)
    except (TypeError, ValueError):
        refused += 1
assert refused == 12, refused
assert llm_query("\ud800 half") == "re: ? half"
assert llm_query("\0 zero") == "re: \0 zero"
for tier in (5, "x" * 300, "\0"):
    try:
        llm_query("hello", tier=tier)
    except (TypeError, ValueError, RuntimeError, OSError):
        continue
