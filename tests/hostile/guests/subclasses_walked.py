# Expect: completed
# Then: kept
"""The classic way out of a Python sandbox: from any value to every class, and on to the system."""

found = {kind.__name__: kind for kind in ().__class__.__base__.__subclasses__()}
refused = 0
for attempt in (
    lambda: found["_wrap_close"].__init__.__globals__["system"]("id"),
    lambda: found["FileIO"]("/etc/passwd"),
    lambda: (lambda: 0).__globals__["__builtins__"]["open"]("/etc/passwd"),
    lambda: FINAL.__self__.__class__.__init__.__globals__["types"].sys.modules["os"].system("id"),
    lambda: found["BuiltinImporter"].load_module("_ctypes").dlopen(None, 0),
    lambda: llm_query.__globals__["host"].ask.__globals__["_host"].call(b"{}"),
):
    try:
        attempt()
    except Exception:
        refused += 1
assert refused == 6, refused
