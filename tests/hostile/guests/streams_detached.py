# Expect: trapped
# Then: restored
"""Takes the streams apart while they are in use, their names included."""

import sys

sys.stdout.detach()
sys.__stderr__ = None
sys.stderr = 5
del sys.stdout
