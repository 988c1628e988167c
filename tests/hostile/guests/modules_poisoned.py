# Expect: trapped
# Then: restored
"""Library functions that the runtime is built from, replaced after it has imported them."""

import json
import linecache
import traceback


def refuse(*_, **__):
    raise SystemExit


json.JSONEncoder.encode = json.JSONDecoder.raw_decode = refuse
linecache.getlines = linecache.getline = linecache.lazycache = refuse
traceback.TracebackException.format = traceback.format_exception = refuse
