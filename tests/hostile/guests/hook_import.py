# Expect: completed
# Then: lost
"""Every later import, the runtime's own included, goes through code of this cell."""

import builtins
import sys


def refuse(*_, **__):
    raise SystemExit


builtins.__import__ = refuse
sys.meta_path[:] = sys.path_hooks[:] = [refuse]
sys.path_importer_cache.clear()
