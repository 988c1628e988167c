# Expect: completed
# Then: kept
"""Other programs, in every way that Python knows to start one."""

import os
import subprocess

tries = [
    lambda: subprocess.run(["id"]),
    lambda: subprocess.Popen("id", shell=True),
    lambda: os.system("id"),
    lambda: os.popen("id"),
    lambda: os.fork(),
    lambda: os.execv("/bin/sh", ["sh"]),
    lambda: os.posix_spawn("/bin/sh", ["sh"], {}),
    lambda: os.spawnv(0, "/bin/sh", ["sh"]),
    lambda: __import__("pty").spawn("sh"),
    lambda: __import__("multiprocessing").Process(target=print).start(),
    lambda: __import__("webbrowser").get("sh").open("x"),
]
refused = 0
for attempt in tries:
    try:
        attempt()
    except Exception:
        refused += 1
assert refused == len(tries), refused
