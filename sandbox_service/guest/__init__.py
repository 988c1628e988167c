"""The runtime inside the guest: runs cells, provides `llm_query`, `FINAL` and `context`.

These files are baked into the warm image and run by the guest's Python, never by the host's.
They import the standard library and one another only.
"""
