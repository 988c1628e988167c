# Expect: trapped
# Then: restored
"""Raises the signal that kills: it reaches the instance that raised it and nothing else."""

import signal

signal.raise_signal(signal.SIGKILL)
