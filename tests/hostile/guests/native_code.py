# Expect: completed
# Then: kept
"""Calls of native code from Python: there is no native code to be called in WebAssembly."""

tries = [
    lambda: __import__("ctypes").CDLL(None).getpid(),
    lambda: __import__("ctypes").CDLL("libc.so.6"),
    lambda: __import__("_ctypes").dlopen("libc.so.6", 0),
    lambda: __import__("cffi").FFI().dlopen(None),
    lambda: __import__("_testcapi").crash_no_current_thread(),
    lambda: (
        __import__("importlib.machinery")
        .machinery.ExtensionFileLoader("x", "/tmp/x.so")
        .load_module()
    ),
]
refused = 0
for attempt in tries:
    try:
        attempt()
    except Exception:
        refused += 1
assert refused == len(tries), refused
