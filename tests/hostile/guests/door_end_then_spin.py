# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Says that the cell is over and goes on: what it said does not count, since it was stopped."""

import _host

_host.call(b'{"call":"ended","ending":"completed","error":null,"final":null,"variables":[]}')
while True:
    pass
