"""Benchmarks: `python -m bench NAME`, or `all`. They run the real services as real processes."""
