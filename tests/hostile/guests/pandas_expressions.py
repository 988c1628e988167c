# Expect: completed
# Then: kept
# Profile: pandas
# Limits: memory_mib=256
"""Expressions that pandas evaluates by itself, and files that it reads and writes."""

import pandas

frame = pandas.DataFrame({"a": range(10)})
refused = 0
for attempt in (
    lambda: pandas.eval("@__import__('os').system('id')"),
    lambda: frame.query("@__builtins__['open']('/etc/passwd')"),
    lambda: pandas.read_csv("/etc/passwd"),
    lambda: pandas.read_csv("http://127.0.0.1/x.csv"),
    lambda: pandas.read_pickle("/etc/passwd"),
    lambda: frame.to_csv("/tmp/x.csv"),
    lambda: frame.to_pickle("/usr/local/lib/x"),
    lambda: pandas.read_html("file:///etc/passwd"),
    lambda: pandas.DataFrame(0, index=range(1 << 15), columns=range(1 << 15)),
):
    try:
        attempt()
    except BaseException:
        refused += 1
assert refused == 9, refused
