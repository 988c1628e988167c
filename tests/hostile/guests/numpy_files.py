# Expect: completed
# Then: kept
"""Files by way of numpy, which opens them in C."""

import numpy

refused = 0
for attempt in (
    lambda: numpy.load("/etc/passwd"),
    lambda: numpy.fromfile("/etc/passwd", "u1"),
    lambda: numpy.memmap("/usr/local/lib/python315.zip", mode="r+"),
    lambda: numpy.zeros(3).tofile("/tmp/x"),
    lambda: numpy.save("/tmp/x", numpy.zeros(3)),
    lambda: numpy.loadtxt("http://127.0.0.1/"),
    lambda: numpy.genfromtxt("/proc/self/environ"),
):
    try:
        attempt()
    except Exception:
        refused += 1
assert refused == 7, refused
