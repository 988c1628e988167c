# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A sum whose denominators grow without end: each step is dearer than the last."""

from fractions import Fraction

total = Fraction(0)
for divisor in range(1, 10**9):
    total += Fraction(1, divisor)
