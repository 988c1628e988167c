# Expect: out_of_fuel
# Then: restored
# Limits: fuel=100_000_000
"""Reports its end in an endless loop: each report replaces the one before."""

import _host

while True:
    _host.call(b'{"call":"ended","ending":"raised","error":null,"final":null,"variables":[]}')
