# Expect: timed_out TimeoutError
# Then: spent
# Limits: session_time_s=0.2
"""Sleeps through the time of the whole session."""

from time import sleep

sleep(100)
