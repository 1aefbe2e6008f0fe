"""Prints the figures of the house: `python scripts/house.py [PATH ...]`.

A house stays simple only if somebody measures it. The figures are those that a reader feels: how
many entries a folder shows, how long functions are, how many of them are a name for one use, how
much the comments explain, and how many imports hide inside functions. `PATH` narrows the source to
folders or files, and then what stands out is listed by name; tests/unit/test_house.py holds the
bars for the whole tree. Works without git, as a source archive has none.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ("rl", "rewards", "rollout", "policy")
SHORT_LINES = 8
LONG_LINES = 80


@dataclass
class Figures:
    """What is counted over some source files; places are `file:line name`."""

    lines: int = 0
    comment_lines: int = 0
    function_lines: list[int] = field(default_factory=list)
    named_once: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    inner_imports: list[str] = field(default_factory=list)

    @property
    def p90(self) -> int:
        return sorted(self.function_lines)[int(0.9 * len(self.function_lines))]

    @property
    def named_once_share(self) -> float:
        return len(self.named_once) / len(self.function_lines)

    @property
    def comment_share(self) -> float:
        return self.comment_lines / self.lines


def source_files(paths: Sequence[str] = SOURCE, root: Path = ROOT) -> list[Path]:
    """The Python files at or below `paths`; raises ValueError if there are none."""
    below = [root / path for path in paths]
    files = [
        f for path in below for f in ([path] if path.is_file() else sorted(path.rglob("*.py")))
    ]
    if not files:
        raise ValueError(f"no Python file at or below {', '.join(paths)}; name a folder or a file")
    return files


def measure(files: Sequence[Path], root: Path = ROOT) -> Figures:
    """The figures of `files`; how often a name is used is counted over the whole source."""
    tokens = {file: list(read_tokens(file)) for file in {*source_files(root=root), *files}}
    # By tokens and not by syntax tree, so that a name inside an annotation counts, and one inside
    # a string or a comment does not.
    uses = Counter(
        token.string
        for of_file in tokens.values()
        for token in of_file
        if token.type == tokenize.NAME
    )
    figures = Figures()
    for file in files:
        name = file.relative_to(root).as_posix()
        text = file.read_text()
        figures.lines += len(text.splitlines())
        # A comment behind code labels its line; one on a line of its own explains.
        figures.comment_lines += sum(
            token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
            for token in tokens[file]
        )
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            figures.function_lines.append(length)
            place = f"{name}:{node.lineno} {node.name}"
            is_dunder = node.name.startswith("__")
            # Twice: its definition and its one use, or an override that only a library calls.
            if length <= SHORT_LINES and not is_dunder and uses[node.name] <= 2:
                figures.named_once.append(place)
            if length > LONG_LINES:
                figures.long_functions.append(f"{place} ({length} lines)")
            figures.inner_imports += [
                f"{name}:{inner.lineno} in {node.name}"
                for inner in ast.walk(node)
                if isinstance(inner, ast.Import | ast.ImportFrom)
            ]
    return figures


def read_tokens(file: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(file.read_text()).readline)


def folder_entries(root: Path = ROOT) -> dict[str, int]:
    """How many entries every folder of the source and of tests/unit shows to a reader.

    `__init__.py` stands everywhere and says nothing, and hidden files and caches are not written
    by hand, so neither counts.
    """
    tops = [root / name for name in (*SOURCE, "tests/unit")]
    folders = [f for top in tops for f in (top, *top.rglob("*")) if f.is_dir()]
    return {
        folder.relative_to(root).as_posix(): sum(
            entry.name not in ("__init__.py", "__pycache__") and not entry.name.startswith(".")
            for entry in folder.iterdir()
        )
        for folder in folders
        if folder.name != "__pycache__"
    }


def main(arguments: Sequence[str]) -> int:
    try:
        figures = measure(source_files(arguments or SOURCE))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    entries = folder_entries()
    fullest = max(entries, key=lambda name: entries[name])
    print(f"lines                          {figures.lines}")
    print(f"functions                      {len(figures.function_lines)}")
    print(f"function lines, p90 and most   {figures.p90}, {max(figures.function_lines)}")
    print(f"short functions of one use     {figures.named_once_share:.1%}")
    print(f"lines that are a comment       {figures.comment_share:.1%}")
    print(f"imports inside functions       {len(figures.inner_imports)}")
    print(f"most entries in a folder       {entries[fullest]} ({fullest})")
    if arguments:
        for title, places in (
            (f"at most {SHORT_LINES} lines, named once", figures.named_once),
            (f"over {LONG_LINES} lines", figures.long_functions),
            ("imports inside functions", figures.inner_imports),
        ):
            if places:
                print(f"{title}:", *places, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
