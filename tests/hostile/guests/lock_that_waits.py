# Expect: trapped
# Then: restored
"""Takes a lock twice: nobody else will ever give it back, and the C library gives up."""

import threading

lock = threading.Lock()
lock.acquire()
lock.acquire()
