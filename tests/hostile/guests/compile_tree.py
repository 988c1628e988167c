# Expect: raised RecursionError
# Then: kept
"""A syntax tree built by hand, deeper than any source could make it."""

import ast

tree = ast.Constant(1)
for _ in range(50_000):
    tree = ast.UnaryOp(ast.USub(), tree)
compile(ast.fix_missing_locations(ast.Expression(tree)), "tree", "eval")
