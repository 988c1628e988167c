# Expect: timed_out TimeoutError
# Then: restored
# Limits: time_s=0.1
"""Sleeps too short for anything to be noticed between them."""

from time import sleep

while True:
    sleep(1e-9)
