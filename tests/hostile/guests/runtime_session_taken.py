# Expect: trapped
# Then: restored
"""Finds the runtime's session object by its frames and replaces all that it consists of."""

import sys

frame = sys._getframe()
while "self" not in frame.f_locals:
    frame = frame.f_back
session = frame.f_locals["self"]
session.answers = session.namespace = session.loop = None
