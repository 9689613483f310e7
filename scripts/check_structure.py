"""Fails when a file or function has outgrown its limit, so that the tree stays readable by construction."""

import ast
import sys
from pathlib import Path

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
ROOT = Path(__file__).resolve().parents[1]


def violations(path: Path) -> list[str]:
    text = path.read_text()
    name = path.relative_to(ROOT)
    num_lines = len(text.splitlines())
    found = [f"{name}: {num_lines} lines, limit {MAX_FILE_LINES}"] if num_lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{name}:{node.lineno}: {node.name} has {length} lines, limit {MAX_FUNCTION_LINES}")
    return found


def main() -> int:
    folders = ("rlvr", "rewards", "scripts", "tests")
    found = [line for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) for line in violations(path)]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
