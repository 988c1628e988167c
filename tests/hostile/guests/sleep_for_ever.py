# Expect: timed_out TimeoutError
# Then: restored
# Limits: time_s=0.1
"""A sleep happens in the host, where no instruction is counted."""

from time import sleep

sleep(1e9)
