"""The LLM gateway: the only door to models."""
