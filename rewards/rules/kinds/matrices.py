"""Matrices and vectors: pmatrix, bmatrix, [[1, 2], [3, 4]] and [1 2; 3 4]."""

from __future__ import annotations

import re

from rewards.rules.kinds.elements import Equal, all_equal, split_outside_brackets
from rewards.rules.reading.notation import plain_value, settle

MAX_MATRIX_CHARS = 800
MAX_ENTRIES = 100

_LATEX = re.compile(
    r"(?P<open>[(\[]?)\s?\\begin\s?\{(?P<kind>[pb]?(?:small)?matrix|array)\}(?:\{[clr|]{1,12}\})?"
    r"(?P<body>.*?)\\end\s?\{(?P=kind)\}\s?(?P<close>[)\]]?)",
    re.DOTALL,
)
_SEMICOLONS = re.compile(r"\[([^\[\]]*;[^\[\]]*)\]")
_CONSTRUCTOR = re.compile(r"(?:np\.array|numpy\.array|Matrix|array)\((.*)\)", re.DOTALL)

_NAME = re.compile(r"[A-Za-z]{1,3}(?:\^\s?\{?(?:-1|T|[0-9])\}?|')?\s?=\s?(?=[(\[\\])")

Rows = list[list[str]]


def is_matrix(reference: str) -> bool:
    return read_matrix(reference) is not None


def compare_matrices(reference: str, answer: str, equal: Equal) -> bool | None:
    wanted, given = read_matrix(reference), read_matrix(answer)
    if wanted is None or given is None or len(wanted) != len(given):
        return False
    return settle([all_equal(*rows, equal) for rows in zip(wanted, given, strict=True)])


def read_matrix(text: str) -> Rows | None:
    """The rows of a matrix, all of one length, or None for anything else."""
    text = plain_value(text) if len(text) <= MAX_MATRIX_CHARS else ""
    text = _NAME.sub("", text, count=1) if _NAME.match(text) else text
    if constructor := _CONSTRUCTOR.fullmatch(text):
        text = constructor[1]
    rows = _latex_rows(text) or _bracket_rows(text) or _semicolon_rows(text)
    if not rows or not rows[0] or len(rows) * len(rows[0]) > MAX_ENTRIES:
        return None
    is_regular = all(len(row) == len(rows[0]) and all(row) for row in rows)
    return rows if is_regular else None


def _latex_rows(text: str) -> Rows | None:
    match = _LATEX.fullmatch(text)
    if not match or "\\begin" in match["body"]:
        return None
    body = match["body"].replace("\\hline", "").strip().removesuffix("\\\\")
    lines = re.split(r"\\\\(?:\[[^\]]{0,8}\])?|\\cr(?![a-z])", body)
    return [[entry.strip() for entry in line.split("&")] for line in lines]


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


def _semicolon_rows(text: str) -> Rows | None:
    match = _SEMICOLONS.fullmatch(text)
    if not match:
        return None
    return [re.split(r"\s?,\s?|\s+", line.strip()) for line in match[1].split(";")]
