# Expect: raised BaseException
# Then: kept
"""Raises what `except Exception` does not catch."""

raise BaseException("out of reach")
