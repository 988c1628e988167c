# Expect: completed
# Then: kept
# Finds: ctypes socket subprocess
"""Hundreds of suspicious places: the report of them has an end, and the cell runs all the same."""

try:
    import ctypes
except ImportError:
    pass
try:
    import socket
except ImportError:
    pass
try:
    import subprocess
except ImportError:
    pass
names = [().__class__.__base__.__subclasses__ for _ in range(2)]
names += [().__class__.__mro__, (lambda: 0).__globals__, (lambda: 0).__code__, print.__self__]
names += [().__class__.__mro__, (lambda: 0).__globals__, (lambda: 0).__code__, print.__self__]
names += [().__class__.__mro__, (lambda: 0).__globals__, (lambda: 0).__code__, print.__self__]
names += [().__class__.__mro__, (lambda: 0).__globals__, (lambda: 0).__code__, print.__self__]
names += [().__class__.__mro__, (lambda: 0).__globals__, (lambda: 0).__code__, print.__self__]
names += [().__class__.__mro__, (lambda: 0).__globals__, (lambda: 0).__code__, print.__self__]
