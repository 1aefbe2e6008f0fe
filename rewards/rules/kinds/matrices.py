"""Matrices and vectors: pmatrix, bmatrix, [[1, 2], [3, 4]], [1 2; 3 4] and <1, 2>."""

import re
from functools import partial

from rewards.rules.kinds.comparison import Ask, all_matched, split_outside_brackets
from rewards.rules.kinds.members import equal_members
from rewards.rules.reading.notation import FRACTION, plain, plain_value, settle
from rewards.rules.reading.numbers import number_literal

MAX_ENTRIES = 100

_LATEX = re.compile(
    r"(?s)(?P<open>[(\[]?)\s?\\begin\s?\{(?P<kind>[pb]?(?:small)?matrix|array)\}(?:\{[clr|]{1,12}\})?"
    r"(?P<body>.*?)\\end\s?\{(?P=kind)\}\s?(?P<close>[)\]]?)"
)
_SEMICOLONS = re.compile(r"\[([^\[\]]*;[^\[\]]*)\]")
_CONSTRUCTOR = re.compile(r"(?s)\A(?:np\.array|numpy\.array|Matrix|array)\((.*)\)\Z")
_VECTOR = re.compile(
    r"(?:\\langle|<|⟨)([^<>]*)(?:\\rangle|>|⟩)|[(\[]([^()=\[\]]*(?:\([^()]*\)[^()=\[\]]*)*)[)\]](?:\^\s?\{?(?:T|\\top|\\mathsf\{T\})\}?)?"
)
_NAME = re.compile(
    r"\A(?:[A-Za-z]{1,3}|\\(?:vec|mathbf|overrightarrow)\s?\{\w{1,3}\})(?:\^\s?\{?(?:-1|T|[0-9])\}?|')?\s?=\s?(?=[(\[\\<⟨])"
)
_FACTOR = re.compile(rf"(-?(?:{FRACTION}|[0-9./]{{1,12}}|[a-z])|-)\s?\*?(?=\[|\(?\\begin)")
_UNIT_VECTORS = re.compile(
    r"\\(?:mathbf|boldsymbol|hat|vec|bm|bf)\s?\{?\s?(?:\\(?:mathbf|hat|vec)\s?\{?)?\s?"
    r"(?:\\([ij])math|([ijk])(?![A-Za-z]))\s?\}{0,2}"
)
_COMPONENT = re.compile(
    rf"\s?(?P<sign>[+-]?)\s?(?P<size>(?:{FRACTION}"
    r"|\\sqrt\s?\{[^{}]{1,20}\}|[0-9./]{1,12}|\([^()]{1,30}\)){0,2}\s?\*?)\s?(?P<letter>[ijk])@\s?"
)

Rows = list[list[str]]


def equal_matrices(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = read_matrix(reference), read_matrix(answer)
    if wanted and given and _UNIT_VECTORS.search(plain(answer)) and len(given) < len(wanted):
        # Without a k the third component is 0.
        given = [*given, ["0"]]
    if wanted and given is None and len(wanted[0]) == 1 < len(wanted):
        # A column vector may be written in a line.
        line = _VECTOR.fullmatch(_NAME.sub("", plain_value(answer)))
        items = split_outside_brackets(line[1] or line[2], ",") if line else None
        given = [[item] for item in items] if items else None
    if wanted is None or given is None or len(wanted) != len(given):
        return False
    equal, pairs = partial(equal_members, ask=ask), zip(wanted, given, strict=True)
    return settle([all_matched(*rows, equal, ordered=True) for rows in pairs])


def read_matrix(text: str) -> Rows | None:
    """The rows of a matrix, all of one length, or None for anything else."""
    text = _CONSTRUCTOR.sub(r"\1", _NAME.sub("", plain_value(text)))
    # A common factor is a habit of writing, and not the task.
    factor = _FACTOR.match(text)
    text = text[factor.end() :] if factor else text
    rows = _latex_rows(text) or _bracket_rows(text) or _component_rows(text)
    if rows is None and (match := _SEMICOLONS.fullmatch(text)):
        # MATLAB's form: [1 2; 3 4]
        rows = [re.split(r"\s?,\s?|\s+", line.strip()) for line in match[1].split(";")]
    is_full = rows and all(row and len(row) == len(rows[0]) and all(row) for row in rows)
    if not rows or not is_full or len(rows) * len(rows[0]) > MAX_ENTRIES:
        return None
    if not factor:
        return rows
    # Numbers are multiplied here, where that is exact; the rest is left to sympy.
    by = number_literal("-1" if factor[1] == "-" else factor[1])

    def multiplied(entry: str) -> str:
        number = number_literal(entry)
        return str(by.value * number.value) if by and number else f"{factor[1]} ({entry})"

    return [list(map(multiplied, row)) for row in rows]


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
    sizes = [term["sign"].replace("+", "") + (term["size"].strip(" *") or "1") for term in terms]
    values = dict(zip(letters, sizes, strict=True))
    return [[values.get(letter, "0")] for letter in ("ijk" if "k" in values else "ij")]


def _bracket_rows(text: str) -> Rows | None:
    lines = (split_outside_brackets(text[1:-1], ",") or []) if text[:1] + text[-1:] == "[]" else []
    if not all(line[:1] + line[-1:] == "[]" for line in lines):
        return None
    rows = [split_outside_brackets(line[1:-1], ",") for line in lines]
    return [row for row in rows if row] if rows and all(rows) else None
