"""What native code would try that has left the guest: one function an attempt.

Run inside a jail, so everything that they need is loaded with the package.
"""

from tests.jail.attempts import files, kernel_parts, memory, network, processes, rights, sight
from tests.jail.attempts.attempt import ATTEMPTS, Surroundings, outcome_of

__all__ = [
    "ATTEMPTS",
    "Surroundings",
    "files",
    "kernel_parts",
    "memory",
    "network",
    "outcome_of",
    "processes",
    "rights",
    "sight",
]
