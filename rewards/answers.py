"""Finds the final answer in what stands after the reasoning.

Accepted forms, strongest first: `\\boxed{...}`, `<answer>...</answer>`, a line `Answer: ...`, and
else the whole text. Linear in the length of the text; nothing is evaluated here.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 20_000
"""Longer answers are cut from the front: a final answer stands at the end."""

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LABELLED = re.compile(r"^\W*(?:final\s+)?(?:answer|答案)\s*[:：=]\s*(.+)$", re.IGNORECASE | re.M)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def final_answers(text: str) -> list[str]:
    """The distinct final answers that the text gives, in order; empty if it is blank.

    More than one means that the text does not commit itself, and none of them counts.

    Example: final_answers("so \\\\boxed{12}") == ["12"]
    """
    text = unicodedata.normalize("NFKC", text[-MAX_CHARACTERS:]).strip()
    found = _boxed(text) or _TAGGED.findall(text) or _LABELLED.findall(text)
    if not found:
        return [text] if text else []
    return list(dict.fromkeys(answer.strip() for answer in found if answer.strip()))


def _boxed(text: str) -> list[str]:
    """Contents of every box, with their braces balanced; an unclosed box has none."""
    contents = []
    position = 0
    while match := _BOX.search(text, position):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            # No box after an unclosed one can close either without closing it first.
            break
        contents.append(text[match.end() : end - 1])
        position = end
    return contents
