# Expect: raised ValueError
# Then: kept
# Limits: memory_mib=512
"""Sends all that it has away in one prompt, larger than anything that crosses the door."""

llm_query("x" * (49 << 20))
