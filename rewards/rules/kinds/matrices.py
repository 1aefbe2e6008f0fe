"""Matrices and vectors: pmatrix, bmatrix, [[1, 2], [3, 4]], [1 2; 3 4] and <1, 2>."""

from __future__ import annotations

import re

from rewards.rules.kinds.comparison import Ask, all_matched, split_outside_brackets
from rewards.rules.kinds.members import equal_members
from rewards.rules.reading.notation import plain, plain_value, settle
from rewards.rules.reading.numbers import number_literal

MAX_MATRIX_CHARS = 800
MAX_ENTRIES = 100

_LATEX = re.compile(
    r"(?P<open>[(\[]?)\s?\\begin\s?\{(?P<kind>[pb]?(?:small)?matrix|array)\}(?:\{[clr|]{1,12}\})?"
    r"(?P<body>.*?)\\end\s?\{(?P=kind)\}\s?(?P<close>[)\]]?)",
    re.DOTALL,
)
_SEMICOLONS = re.compile(r"\[([^\[\]]*;[^\[\]]*)\]")
_CONSTRUCTOR = re.compile(r"(?:np\.array|numpy\.array|Matrix|array)\((.*)\)", re.DOTALL)
_VECTOR = re.compile(
    r"(?:\\langle|<|⟨)([^<>]*)(?:\\rangle|>|⟩)|[(\[]([^()=\[\]]*(?:\([^()]*\)[^()=\[\]]*)*)[)\]](?:\^\s?\{?(?:T|\\top|\\mathsf\{T\})\}?)?"
)
_NAME = re.compile(
    r"(?:[A-Za-z]{1,3}|\\(?:vec|mathbf|overrightarrow)\s?\{\w{1,3}\})(?:\^\s?\{?(?:-1|T|[0-9])\}?|')?\s?=\s?(?=[(\[\\<⟨])"
)
_FACTOR = re.compile(
    r"(-?(?:\\[dt]?frac\s?\{[^{}]{1,20}\}\s?\{[^{}]{1,20}\}|[0-9./]{1,12}|[a-z])|-)\s?\*?(?=\[|\\begin|\(\\begin)"
)

_UNIT_VECTORS = re.compile(
    r"\\(?:mathbf|boldsymbol|hat|vec|bm|bf)\s?\{?\s?(?:\\(?:mathbf|hat|vec)\s?\{?)?\s?"
    r"(?:\\([ij])math|([ijk])(?![A-Za-z]))\s?\}{0,2}"
)
_COMPONENT = re.compile(
    r"\s?(?P<sign>[+-]?)\s?(?P<size>(?:\\[dt]?frac\s?\{[^{}]{1,20}\}\s?\{[^{}]{1,20}\}"
    r"|\\sqrt\s?\{[^{}]{1,20}\}|[0-9./]{1,12}|\([^()]{1,30}\)){0,2}\s?\*?)\s?(?P<letter>[ijk])@\s?"
)

Rows = list[list[str]]


def is_matrix(reference: str, question: str = "") -> bool:
    return read_matrix(reference) is not None


def equal_matrices(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = read_matrix(reference), read_matrix(answer)
    if wanted and given and _UNIT_VECTORS.search(plain(answer)) and len(given) < len(wanted):
        # Without a k the third component is 0.
        given = [*given, ["0"]]
    if wanted and given is None and len(wanted[0]) == 1 < len(wanted):
        # A column vector may be written in a line.
        line = _VECTOR.fullmatch(_NAME.sub("", plain_value(answer), count=1)[:MAX_MATRIX_CHARS])
        items = split_outside_brackets(line[1] or line[2], ",") if line else None
        given = [[item] for item in items] if items else None
    if wanted is None or given is None or len(wanted) != len(given):
        return False
    return settle(
        [
            all_matched(*rows, lambda left, right: equal_members(left, right, ask), ordered=True)
            for rows in zip(wanted, given, strict=True)
        ]
    )


def read_matrix(text: str) -> Rows | None:
    """The rows of a matrix, all of one length, or None for anything else."""
    text = plain_value(text) if len(text) <= MAX_MATRIX_CHARS else ""
    text = _NAME.sub("", text, count=1) if _NAME.match(text) else text
    if constructor := _CONSTRUCTOR.fullmatch(text):
        text = constructor[1]
    # A common factor is a habit of writing, and not the task.
    factor = _FACTOR.match(text)
    text = text[factor.end() :] if factor else text
    rows = _latex_rows(text) or _bracket_rows(text) or _component_rows(text)
    if rows is None and (match := _SEMICOLONS.fullmatch(text)):
        # MATLAB's form: [1 2; 3 4]
        rows = [re.split(r"\s?,\s?|\s+", line.strip()) for line in match[1].split(";")]
    if not rows or not rows[0] or len(rows) * len(rows[0]) > MAX_ENTRIES:
        return None
    if not all(len(row) == len(rows[0]) and all(row) for row in rows):
        return None
    if not factor:
        return rows
    # Numbers are multiplied here, where that is exact; the rest is left to sympy.
    by = number_literal(f"{factor[1]}1" if factor[1] == "-" else factor[1])
    return [
        [
            str(by.value * number.value)
            if by and (number := number_literal(entry))
            else f"{factor[1]} ({entry})"
            for entry in row
        ]
        for row in rows
    ]


def _latex_rows(text: str) -> Rows | None:
    match = _LATEX.fullmatch(text)
    if not match or "\\begin" in match["body"]:
        return None
    # Lines and a last line break are typography.
    body = match["body"].replace("\\hline", "").strip().removesuffix("\\\\")
    lines = re.split(r"\\\\(?:\[[^\]]{0,8}\])?|\\cr(?![a-z])", body)
    return [[entry.strip() for entry in line.split("&")] for line in lines]


def _component_rows(text: str) -> Rows | None:
    """The column of 3\\mathbf{i} - 2\\mathbf{j}, of two components where it has no k."""
    text = _UNIT_VECTORS.sub(lambda vector: f" {vector[1] or vector[2]}@", text)
    # Bare letters are unit vectors only together: 3i is a number.
    if "@" not in text:
        if not {"i", "j"} <= set(text):
            return None
        text = re.sub(r"(?<![A-Za-z\\])([ijk])(?![A-Za-z])", r" \1@", text)
    terms = list(_COMPONENT.finditer(text))
    letters = [term["letter"] for term in terms]
    if _COMPONENT.sub("", text).strip() or len(set(letters)) < len(letters) or not letters:
        return None
    values = {
        term["letter"]: (term["sign"] or "").replace("+", "") + (term["size"].strip(" *") or "1")
        for term in terms
    }
    return [[values.get(letter, "0")] for letter in ("ijk" if "k" in values else "ij")]


def _bracket_rows(text: str) -> Rows | None:
    if not (text.startswith("[") and text.endswith("]")):
        return None
    lines = split_outside_brackets(text[1:-1], ",")
    if not lines or not all(line.startswith("[") and line.endswith("]") for line in lines):
        return None
    rows: Rows = []
    for line in lines:
        entries = split_outside_brackets(line[1:-1], ",")
        if entries is None or split_outside_brackets(line, ",") != [line]:
            return None
        rows.append(entries)
    return rows
