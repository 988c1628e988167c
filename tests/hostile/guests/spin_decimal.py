# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Ten million digits of the exponential function, in one call."""

import decimal

decimal.getcontext().prec = 10**7
decimal.Decimal(2).exp()
