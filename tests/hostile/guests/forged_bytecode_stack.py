# Expect: trapped
# Then: restored
"""Bytecode that takes two thousand values from an empty stack, and frees what it finds there."""

import opcode


def victim():
    return None


pops = [opcode.opmap["POP_TOP"], 0] * 2_000
code = [opcode.opmap["RESUME"], 0, *pops, opcode.opmap["RETURN_VALUE"], 0]
victim.__code__ = victim.__code__.replace(co_code=bytes(code), co_stacksize=1)
victim()
