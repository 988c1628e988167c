# Expect: trapped
# Then: restored
"""Bytecode that no compiler makes: a constant is taken from far behind the end of its table."""

import opcode


def victim():
    return None


far = [opcode.opmap["EXTENDED_ARG"], 255] * 3 + [opcode.opmap["LOAD_CONST"], 255]
code = [opcode.opmap["RESUME"], 0, *far, opcode.opmap["RETURN_VALUE"], 0]
victim.__code__ = victim.__code__.replace(co_code=bytes(code), co_stacksize=1, co_consts=())
victim()
