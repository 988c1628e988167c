# Expect: trapped
# Then: restored
"""Built-in types replaced by others, under the names that the runtime knows them by."""

import builtins

builtins.str = builtins.dict = builtins.bool = builtins.list = builtins.isinstance = None
builtins.len = builtins.type = builtins.BaseException = None
