# Expect: completed
# Then: kept
"""Names put together at run time: the check sees nothing, and the walls stand nevertheless."""

door = "".join(map(chr, [95, 104, 111, 115, 116]))
module = vars(vars()["__" + "builtins__"] if False else __builtins__)["__imp" + "ort__"](door)
try:
    getattr(module, "ca" + "ll")(b"{}")
    raise AssertionError("answered")
except (OSError, RuntimeError):
    pass
