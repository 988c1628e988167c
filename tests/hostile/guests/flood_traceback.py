# Expect: raised RecursionError
# Then: kept
# Limits: output_bytes=65536
"""A traceback of a thousand frames that are all different, so that none is left out."""

functions = []
for number in range(3_000):
    exec(f"def f{number}():\n    return functions[{number} + 1]()")
    functions.append(globals()[f"f{number}"])
functions[0]()
