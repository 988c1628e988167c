"""A repository's files: what there is, what imports what, and lines with their numbers."""

# mypy: ignore-errors

import ast
import collections
import posixpath
import re

_IMPORTS = {
    "py": r"^\s*(?:from\s+([.\w]+)\s+import|import\s+([.\w]+))",
    "js": r"(?:from\s+|require\()\s*['\"]([^'\"]+)['\"]",
    "ts": r"(?:from\s+|require\()\s*['\"]([^'\"]+)['\"]",
    "go": r"^\s*(?:import\s+)?\"([\w./-]+)\"",
    "rs": r"^\s*use\s+([\w:]+)",
    "java": r"^\s*import\s+([\w.]+)",
}
_DEFINITIONS = (
    r"^\s*(?:export\s+|pub\s+|public\s+|static\s+|async\s+)*"
    r"(?:def|class|func|fn|function|interface|struct|enum|type)\s+\w+"
)


def tree(depth=2):
    """Print folders down to a depth, with their files, lines and characters."""
    sums = collections.defaultdict(lambda: [0, 0, 0])
    for name in context:
        text = source(name)
        parts = name.split("/")
        for level in range(min(len(parts), depth + 1)):
            key = "/".join(parts[:level]) or "."
            for index, value in enumerate((1, text.count("\n") + 1, len(text))):
                sums[key][index] += value
    for key, (files, lines_, characters) in sorted(sums.items()):
        print(f"{key:50} {files:6,} files {lines_:9,} lines {characters:11,} characters")


def source(name):
    """Return a file's text as a `str`."""
    return str(context[name][:])


def numbered(name, first=1, last=None):
    """Return lines `first` to `last` of a file, counted from 1, each with its number."""
    rows = source(name).split("\n")
    last = min(last or len(rows), len(rows))
    return "\n".join(f"{number:5} {rows[number - 1]}" for number in range(first, last + 1))


def place(name, first, last=None):
    """Return where lines of a file stand: a dict of document, start, end and quote."""
    text = source(name)
    rows = text.split("\n")
    last = last or first
    start = sum(len(row) + 1 for row in rows[: first - 1])
    quote = "\n".join(rows[first - 1 : last])
    lead = len(quote) - len(quote.lstrip())
    start, quote = start + lead, quote.strip()[:2000]
    if not quote:
        raise ValueError(f"lines {first} to {last} of {name} are empty")
    return {"document": name, "start": start, "end": start + len(quote), "quote": quote}


def outline(name):
    """Return the classes and functions of a file: pairs of line number and first line."""
    text = source(name)
    if name.endswith(".py"):
        try:
            parsed = ast.parse(text)
        except SyntaxError as error:
            return [(error.lineno or 1, f"SYNTAX ERROR: {error.msg}")]
        rows = text.split("\n")
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        nodes = sorted(
            (n for n in ast.walk(parsed) if isinstance(n, kinds)), key=lambda n: n.lineno
        )
        return [(node.lineno, rows[node.lineno - 1].rstrip()) for node in nodes]
    return [
        (number, row.rstrip())
        for number, row in enumerate(text.split("\n"), 1)
        if re.match(_DEFINITIONS, row)
    ]


def imports(name):
    """Return the names that a file imports, as they stand in it."""
    pattern = _IMPORTS.get(posixpath.splitext(name)[1].lstrip("."), "")
    if not pattern:
        return []
    found = re.findall(pattern, source(name), re.MULTILINE)
    names = ["".join(each) if isinstance(each, tuple) else each for each in found]
    return list(dict.fromkeys(names))


def import_graph(folder=""):
    """Return which files of the repository each Python file of a folder imports: a dict of sets."""
    modules = {}
    for name in context:
        if name.endswith(".py"):
            dotted = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            parts = dotted.split(".")
            for cut in range(len(parts)):
                modules.setdefault(".".join(parts[cut:]), name)
    graph = {}
    for name in context:
        if name.endswith(".py") and name.startswith(folder):
            targets = set()
            for dotted in imports(name):
                path = dotted.lstrip(".")
                while path and path not in modules:
                    path = path.rpartition(".")[0]
                if path and modules[path] != name:
                    targets.add(modules[path])
            graph[name] = targets
    return graph


def long_functions(lines_min=60, folder=""):
    """Return Python functions of at least so many lines: triples of lines, file and name."""
    found = []
    for name in context:
        if not name.endswith(".py") or not name.startswith(folder):
            continue
        try:
            parsed = ast.parse(source(name))
        except SyntaxError:
            continue
        for node in ast.walk(parsed):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = node.end_lineno - node.lineno + 1
                if size >= lines_min:
                    found.append((size, name, node.name))
    return sorted(found, reverse=True)
