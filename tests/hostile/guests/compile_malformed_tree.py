# Expect: completed
# Then: kept
"""Syntax trees that no parser makes: wrong types, missing parts, contexts that do not fit."""

import ast

trees = [
    ast.Module([ast.Expr(ast.Name("x", ast.Store()))], []),
    ast.Module([ast.Assign([ast.Constant(1)], ast.Constant(2))], []),
    ast.Module([ast.Return(None)], []),
    ast.Module([ast.FunctionDef("f", None, [], [])], []),
    ast.Module([ast.Expr(None)], []),
    ast.Module([1, "two", None], []),
    ast.Module([ast.Expr(ast.Compare(ast.Constant(1), [], []))], []),
    ast.Module([ast.Expr(ast.Constant(object()))], []),
    ast.Module([ast.ImportFrom(None, [], -5)], []),
    ast.Module([ast.Expr(ast.Name("None", ast.Load()))], []),
    ast.Module([ast.Expr(ast.BoolOp(ast.And(), []))], []),
]
refused = 0
for tree in trees:
    try:
        compile(ast.fix_missing_locations(tree), "tree", "exec")
    except (SyntaxError, TypeError, ValueError, AttributeError):
        refused += 1
assert refused == len(trees), refused
