"""Finds what an answer text states as its final answer, in linear time.

Recognised are `\\boxed{...}`, `<answer>...</answer>` and `Answer: ...` (also "the answer is ...");
a text with none of them is its own answer when it is short. Nothing is evaluated here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARACTERS = 20_000
"""A longer answer text states nothing: no question is answered by a book."""
MAX_BARE_CHARACTERS = 200
"""Longest text that may stand for itself, without any marker."""
MAX_FINALS = 16
"""A text that states more answers than this states none."""

_BRACES = re.compile(r"\\[{}\\]|\\(?:boxed|fbox)\s{0,3}\{|[{}]")
_STATEMENT = re.compile(
    r"(?:\banswer(?:\*\*)?\s?(?:is)?\s?|答案)[:：](?:\*\*)?[ \t]{0,8}(?:\r?\n[ \t]{0,8}){0,2}"
    r"([^\r\n]*)|\b(?:the|final) answer is\s([^\r\n]*)",
    re.IGNORECASE,
)
_OPEN, _CLOSE = "<answer>", "</answer>"
# Beside a marked answer these take it back or add a second one; so does a number after it.
_HEDGE = re.compile(r"或|\b(?:or|either|maybe|perhaps|possibly|alternatively|not)\b", re.I)
_NUMBER = re.compile(r"\d")


@dataclass(frozen=True)
class _Marked:
    """A marker's place in the text, [start, end), and the place of what it encloses."""

    start: int
    end: int
    inner_start: int
    inner_end: int

    def holds(self, other: _Marked) -> bool:
        inside = self.inner_start <= other.start and other.end <= self.inner_end
        return inside and self != other


def final_answers(text: str) -> list[str]:
    """Return every distinct final answer the text states, in order; empty where it states none.

    Markers nest, and the innermost one speaks, unless the text between it and its enclosing
    marker hedges ("Answer: \\boxed{12} or 13"): then both count, so they contradict each other.

    Example: final_answers("so \\\\boxed{12}") == ["12"]
    """
    if len(text) > MAX_CHARACTERS:
        return []
    boxes = _boxes(text)
    statements = _statements(text)
    if boxes:
        # A box is the answer, whatever the prose elsewhere calls one.
        statements = [one for one in statements if any(one.holds(box) for box in boxes)]
    marked = [*boxes, *_tags(text), *statements]
    if len(marked) > MAX_FINALS:
        return []
    if not marked:
        bare = text.strip()
        return [bare] if bare and len(bare) <= MAX_BARE_CHARACTERS else []
    marked.sort(key=lambda one: one.start)
    finals = [
        text[one.inner_start : one.inner_end].strip()
        for one in marked
        if not _is_spoken_for(one, [other for other in marked if one.holds(other)], text)
    ]
    return list(dict.fromkeys(finals))


def _boxes(text: str) -> list[_Marked]:
    """Every `\\boxed{...}` with balanced braces; one pass, so unbalanced floods stay cheap."""
    found: list[_Marked] = []
    opened: list[re.Match[str]] = []
    for brace in _BRACES.finditer(text):
        symbol = brace.group()
        if symbol.endswith("{") and symbol != r"\{":
            opened.append(brace)
        elif symbol == "}" and opened:
            start = opened.pop()
            if len(start.group()) > 1:
                found.append(_Marked(start.start(), brace.end(), start.end(), brace.start()))
    return found


def _tags(text: str) -> list[_Marked]:
    found: list[_Marked] = []
    start = text.find(_OPEN)
    while start >= 0:
        inner_start = start + len(_OPEN)
        inner_end = text.find(_CLOSE, inner_start)
        if inner_end < 0:
            break
        end = inner_end + len(_CLOSE)
        found.append(_Marked(start, end, inner_start, inner_end))
        start = text.find(_OPEN, end)
    return found


def _statements(text: str) -> list[_Marked]:
    found: list[_Marked] = []
    for match in _STATEMENT.finditer(text):
        start, end = match.span(1 if match.group(1) is not None else 2)
        # A statement inside a one-line <answer> ends before the tag closes.
        closing = text.find(_CLOSE, start, end)
        end = closing if closing >= 0 else end
        # "**Answer: 12**": the mark that closes opened before the label.
        inner = text[start:end].rstrip()
        end = start + len(inner) - (2 if inner.endswith("**") and inner.count("**") % 2 else 0)
        found.append(_Marked(match.start(), end, start, end))
    return found


def _is_spoken_for(outer: _Marked, inner: list[_Marked], text: str) -> bool:
    """Whether inner markers state the whole of what `outer` encloses."""
    if not inner:
        return False
    residue: list[str] = []
    place = outer.inner_start
    for one in inner:
        residue.append(text[place : max(place, one.start)])
        place = max(place, one.end)
    rest = text[place : outer.inner_end]
    return not (_HEDGE.search(" ".join([*residue, rest])) or _NUMBER.search(rest))
