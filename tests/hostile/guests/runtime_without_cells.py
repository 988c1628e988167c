# Expect: completed
# Then: lost
"""Takes away the one name by which every cell begins: this session can run none any more."""

import builtins

del builtins.__cell__
