"""Strips notation that carries no meaning from an answer or a reference: delimiters, spacing,
width of characters, emphasis, quotes.

Callers bound the length first; every expression here is linear in it.
"""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "‐": "-",
        "‑": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\neq ",
        "≈": r"\approx ",
        "∈": r"\in ",
        "∪": r"\cup ",
        "∅": r"\emptyset ",
        "±": r"\pm ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "º": "°",
        "¥": "¥",
        "∶": ":",
        "\u00a0": " ",
        "\u2009": "",
        "\u202f": "",
        "\u200b": "",
        "\ufeff": "",
    }
)
# NFKC would turn these into plain digits: 5² into 52, 1½ into 11/2.
_RAISED = re.compile(r"[\u00b2\u00b3\u00b9\u2070-\u207b]+")
# LaTeX would read \sqrt 45 as the root of 4, times 5.
_ROOT = re.compile(r"√\s?(?:\(([^()]{1,80})\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))")
_LOWERED = re.compile(r"[\u2080-\u2089]+")
_VULGAR = re.compile(r"[\u00bc-\u00be\u2150-\u215e\u2189]")

_SPACING = re.compile(
    r"\\(?:left|right|displaystyle)(?![a-zA-Z])|(?<!\\)\\[,!;:]|(?<!\\)\\[()\[\]]"
)
_BLANK = re.compile(r"(?<!\\)\\ |\\q?quad(?![a-zA-Z])|(?<!\\)~(?=\\|\d)")
_DOLLAR = re.compile(r"(?<!\\)\$")
_CURRENCY = re.compile(r"\\\$|(?<!\\)\$(?=\s?\.?[0-9])")
_CURRENCY_MARK = "\ue000"
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|f?boxed)\s?\{([^{}]*)\}"
)
_INNER_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_QUOTES = (
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
    ("‘", "’"),
    ("《", "》"),
    ("「", "」"),
    ("『", "』"),
)
_NAMED = re.compile(
    r"(?P<name>[A-Za-z](?:_\w|_\{\w{1,8}\}|')?(?:\([A-Za-z0-9]{1,8}\))?"
    r"|[A-Za-z]{3,15}|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|sigma))"
    r"\s?=\s?(?=[^=\s])"
)
_FUNCTION_NAMES = frozenset({"sin", "cos", "tan", "cot", "log", "exp", "sqrt", "abs"})
# 3:2 is not 32, nor is 1,2 the same as 12.
_RATIO = re.compile(r"(?<=[0-9])\s?:\s?(?=[0-9])")
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])[,;'](?=[0-9])")
_PUNCTUATION = re.compile(r"[,;!`'\"‘’“”《》「」『』()\[\]{}_*、。]|(?<![0-9])[.:]|[.:](?![0-9])")
_DIGIT_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_CJK = "\u3400-\u9fff"
_CJK_SPACE = re.compile(rf"(?<=[{_CJK}])\s+|\s+(?=[{_CJK}])")
_WORD_HYPHEN = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")


def plain(text: str) -> str:
    """Return the text without maths delimiters, emphasis, quotes or a closing full stop.

    Full-width characters become ordinary ones (NFKC); powers and fractions that Unicode writes as
    one character become `^{2}` and `1/2`. A dollar sign stays where it is money.
    """
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text.strip())
    text = _RAISED.sub(_raised, text.replace("√", r"\sqrt ").translate(_SYMBOLS))
    text = _LOWERED.sub(lambda low: "_{" + unicodedata.normalize("NFKC", low.group()) + "}", text)
    text = unicodedata.normalize("NFKC", _VULGAR.sub(_vulgar, text)).replace("\u2044", "/")
    text = _SPACING.sub("", _BLANK.sub(" ", _without_dollars(text).replace("−", "-")))
    text = text.replace("{,}", ",").replace(r"\%", "%").strip()
    for _ in range(3):
        stripped = _unwrapped(text)
        if stripped == text:
            break
        text = stripped
    return text


def plain_value(text: str) -> str:
    """Return `plain(text)` without a leading `x =`, `f(2) =` or `area =`."""
    text = plain(text)
    named = _naming(text)
    return text[named.end() :] if named else text


def value_name(text: str) -> str:
    """Return the single letter in front of `=`, or nothing."""
    named = _naming(plain(text))
    return named["name"] if named and len(named["name"]) == 1 else ""


def plain_words(text: str) -> str:
    """Return the text for comparison word by word.

    Case, spacing, punctuation, quotes, `the` and a leading article carry no meaning; a question
    mark does, and so do hyphens between digits.
    """
    text = _INNER_TEXT.sub(r"\1", plain(text)).replace(r"\cdot ", " ").replace(r"\times ", " x ")
    text = text.replace("\\", " ").casefold().replace("&", " and ")
    text = _BETWEEN_DIGITS.sub(" ", _RATIO.sub(":", _DIGIT_COMMA.sub("", text)))
    text = _WORD_HYPHEN.sub(" ", text)
    # A mark inside a word joins it (U.S. is US); between words a space already divides.
    text = _PUNCTUATION.sub("", re.sub(r"[,;:、]\s|[()\[\]]", " ", text))
    words = [word for word in text.split() if word != "the"] or text.split()
    if len(words) > 1 and words[0] in ("a", "an"):
        words = words[1:]
    return _CJK_SPACE.sub("", " ".join(words))


def settle(verdicts: list[bool | None]) -> bool | None:
    """All of them: False if one is False, else None if one is open, else True."""
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _raised(match: re.Match[str]) -> str:
    return "^{" + unicodedata.normalize("NFKC", match.group()).replace("−", "-") + "}"


def _vulgar(match: re.Match[str]) -> str:
    return " " + unicodedata.normalize("NFKC", match.group()).replace("\u2044", "/")


def _without_dollars(text: str) -> str:
    """Dollar signs come in pairs around mathematics; an odd one in front of a digit is money."""
    if len(_DOLLAR.findall(text)) % 2:
        text = _CURRENCY.sub(_CURRENCY_MARK, text, count=1)
    text = text.replace(r"\$", _CURRENCY_MARK)
    return text.replace("$", "").replace(_CURRENCY_MARK, "$")


def _unwrapped(text: str) -> str:
    text = text.strip().removesuffix(".").removesuffix("。").strip()
    for opening, closing in _QUOTES:
        inner = text[len(opening) : -len(closing)]
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
            and closing not in inner
        ):
            return inner
    wrapped = _WRAPPER.fullmatch(text)
    return wrapped.group(1) if wrapped else text


def _naming(text: str) -> re.Match[str] | None:
    named = _NAMED.match(text)
    if not named or text.count("=") != 1 or named["name"].lower() in _FUNCTION_NAMES:
        return None
    return named
