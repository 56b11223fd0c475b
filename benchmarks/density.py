"""How many decisions a reader meets: in 100 lines of function bodies, room by room, beside other packages.

A decision is an ``if``, a loop, an ``except``, a ``case``, one more operand of ``and`` or ``or``, a comprehension, or a
condition in one. Docstrings, comments and blank lines are not counted as lines. It is a sign, not a target: it
should fall by rules with names and by less code.

    python benchmarks/density.py                        # the rooms of ftkit
    python benchmarks/density.py httpx einops pluggy    # any installed package, or any path, beside it
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the outermost functions of a module: what stands inside one is part of its body."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from functions(node)


def decisions(node: ast.AST) -> int:
    """Count the decisions below a node."""
    count = 0
    for inner in ast.walk(node):
        if isinstance(inner, _BRANCHES):
            count += 1
        elif isinstance(inner, ast.BoolOp):
            count += len(inner.values) - 1
        elif isinstance(inner, ast.comprehension):
            count += 1 + len(inner.ifs)
    return count


def measure(path: Path) -> tuple[int, int]:
    """Return the decisions in all functions below a path, and the lines of their bodies."""
    found = lines = 0
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        text = file.read_text(encoding="utf-8")
        source = [line.strip() for line in text.splitlines()]
        for function in functions(ast.parse(text)):
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            found += sum(map(decisions, body))
            lines += sum(
                bool(line) and not line.startswith("#")
                for statement in body
                for line in source[statement.lineno - 1 : statement.end_lineno]
            )
    return found, lines


def named(name: str) -> Path:
    """Return the path that a name stands for: itself, or that of an installed package."""
    if Path(name).exists():
        return Path(name)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is no path and no installed package.")
    return Path(spec.origin).parent


def main() -> None:
    """Print the table."""
    house = Path(__file__).parent.parent / "src" / "ftkit"
    rooms = [path for path in sorted(house.iterdir()) if path.is_dir() or path.suffix == ".py"]
    print(f"{'':24}{'decisions':>10}{'lines':>8}{'in 100':>8}")
    for path in [house, *rooms, *map(named, sys.argv[1:])]:
        found, lines = measure(path)
        if lines:
            print(f"{path.name:24}{found:>10,}{lines:>8,}{100 * found / lines:>8.0f}")


if __name__ == "__main__":
    main()
