# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A handler that raises its own signal again, whenever it is called."""

import signal


def again(number, frame):
    signal.raise_signal(number)


signal.signal(signal.SIGINT, again)
while True:
    try:
        signal.raise_signal(signal.SIGINT)
    except RecursionError:
        continue
