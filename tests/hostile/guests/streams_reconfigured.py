# Expect: completed
# Then: kept
"""Gives the streams codings and error handlers that fail."""

import codecs
import sys


def refuse(error):
    raise SystemExit


for name in ("strict", "replace", "backslashreplace", "surrogateescape"):
    codecs.register_error(name, refuse)
sys.stdout.reconfigure(encoding="ascii", errors="strict", line_buffering=False)
sys.stderr.reconfigure(encoding="utf-16", errors="strict")
