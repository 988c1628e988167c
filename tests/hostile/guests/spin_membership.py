# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""`in` over an endless cycle: another loop that is in C alone."""

import itertools

None in itertools.cycle([0])
