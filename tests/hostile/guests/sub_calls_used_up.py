# Expect: raised LimitExceededError
# Then: kept
# Limits: sub_calls=10
"""One batch far above the session's limit: what fits is asked, the rest never begins."""

llm_query_batched(["again"] * 1_000)
