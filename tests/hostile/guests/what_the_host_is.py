# Expect: completed
# Then: kept
"""Looks for the host: its name, users, paths, environment, processors, addresses."""

import os
import platform
import sys

assert set(os.environ) <= {"HOME", "PYTHONTZPATH", "LC_CTYPE"}, dict(os.environ)
assert sys.platform == "wasi", sys.platform
assert all(path.startswith("/usr/local/lib") for path in sys.path if path), sys.path
found = [platform.node(), *sys.argv, sys.executable or "", sys.prefix]
for name in ("uname", "getlogin", "getcwd", "cpu_count", "getppid", "ctermid", "getloadavg"):
    try:
        found.append(getattr(os, name)())
    except (OSError, AttributeError):
        continue
text = repr(found)
for trace in ("fathom", "linux", "x86", "site-packages", ".cache", "root"):
    assert trace not in text.lower(), text
