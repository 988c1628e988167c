# Expect: trapped
# Then: restored
"""Bytecode that jumps a gigabyte ahead and goes on with whatever lies there."""

import opcode


def victim():
    return None


far = [opcode.opmap["EXTENDED_ARG"], 127] + [opcode.opmap["EXTENDED_ARG"], 255] * 2
code = [opcode.opmap["RESUME"], 0, *far, opcode.opmap["JUMP_FORWARD"], 255]
victim.__code__ = victim.__code__.replace(co_code=bytes(code))
victim()
