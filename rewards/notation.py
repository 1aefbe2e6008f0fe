"""Strips notation that carries no meaning from an answer or a reference: delimiters, spacing."""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "≤": r"\le ",
        "≥": r"\ge ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "√": r"\sqrt ",
        "\u00a0": " ",
        "\u2009": "",
        "\u202f": "",
    }
)
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,!;:]|(?<!\\)\\[()\[\]]|\\?\$")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|f?boxed)\s?\{([^{}]*)\}")
_NAMED = re.compile(r"[A-Za-z](?:_\w|_\{\w{1,8}\})?\s?=\s?(?=[^=\s])")


def plain(text: str) -> str:
    """Return the text without maths delimiters, markdown emphasis or a closing full stop."""
    text = _SPACING.sub("", text.strip().translate(_SYMBOLS))
    text = text.replace("{,}", ",").replace(r"\%", "%").strip().removesuffix(".")
    for mark in ("**", "`", '"'):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)]
    text = text.removesuffix(".").strip()
    wrapped = _WRAPPER.fullmatch(text)
    return wrapped.group(1).strip().removesuffix(".") if wrapped else text


def plain_value(text: str) -> str:
    """Return `plain(text)` without a leading `x =`; only a single letter can name a value."""
    text = plain(text)
    named = _NAMED.match(text)
    return text[named.end() :] if named and text.count("=") == 1 else text


def plain_words(text: str) -> str:
    """Return the text for comparison word by word: case, spacing and outer marks removed."""
    text = unicodedata.normalize("NFC", plain(text)).casefold()
    text = " ".join(text.split()).strip("'\"“”‘’`.,;:! ")
    if len(text) > 2 and text[0] + text[-1] in ("()", "[]", "{}"):
        text = text[1:-1].strip()
    article, _, rest = text.partition(" ")
    return rest if rest and article in ("a", "an", "the") else text
