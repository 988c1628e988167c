# Expect: out_of_fuel
# Then: restored
# Limits: fuel=300_000_000
"""Millions of lines: the parser is C, and knows no limit of its own."""

compile("x = 1\n" * 2_000_000, "huge", "exec")
