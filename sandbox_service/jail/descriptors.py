"""What a process has inherited: open files, environment, folder and file mask."""

from __future__ import annotations

import os
from collections.abc import Collection

_STANDARD = (0, 1)
_STANDARD_ERROR = 2
_DESCRIPTORS_END = 1 << 20
"""As many as the kernel lets a process have, unless it was told otherwise."""


def close_others(keep: Collection[int]) -> None:
    """Close every descriptor but `keep` and standard error; input and output become nothing.

    The environment is emptied, the folder is the root, and new files are the owner's alone.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in _STANDARD:
        if standard not in keep:
            os.dup2(null, standard, inheritable=False)
    kept = sorted({*keep, *_STANDARD, _STANDARD_ERROR})
    for low, high in zip(kept, [*kept[1:], _DESCRIPTORS_END], strict=True):
        os.closerange(low + 1, high)
    os.environ.clear()
    os.chdir("/")
    os.umask(0o077)
