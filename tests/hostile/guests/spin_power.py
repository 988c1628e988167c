# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""One multiplication in C that takes minutes: Python checks for signals only between bytecodes."""

10**10**8
