# Expect: trapped
# Then: restored
"""Walks from a provided function to the objects that hold it, and takes the runtime apart."""

import gc

gc.unfreeze()
for session in [found for found in gc.get_objects() if type(found).__name__ == "Session"]:
    session.__dict__.clear()
for holder in gc.get_referrers(FINAL, llm_query):
    if type(holder) is dict and holder is not globals():
        holder.clear()
