# Expect: completed
# Then: kept
# Limits: memory_mib=256
"""A prompt of megabytes, full of characters that take six bytes each as JSON."""

answer = llm_query("\x01" * (1 << 20))
assert len(answer) == (1 << 20) + 4, len(answer)
