# Expect: completed
# Then: kept
"""Replaces every provided name; they come back with the next cell."""


def spin(*_, **__):
    while True:
        pass


FINAL = FINAL_VAR = SHOW_VARS = llm_query = llm_query_batched = rlm_query = spin
LLMQueryError = FailedQuery = LimitExceededError = int
