"""Strips notation that carries no meaning from an answer or a reference: delimiters, spacing,
width of characters, emphasis, quotes.

Callers bound the length first; every expression here is linear in it.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import accumulate

# Signs beside what they become: LaTeX, or the plain sign that they look like.
_LOOKALIKES = {"−": "-", "–": "-", "‐": "-", "‑": "-", "\u00a0": " ", "º": "°", "¥": "¥", "∶": ":"}
_LOOKALIKES |= {"÷": "/", "℃": "°C", "℉": "°F"} | dict.fromkeys("\u2009\u202f\u200b\ufeff", "")
_MACROS = "×times ·cdot ⋅cdot ≤le ≥ge ≠neq ≈approx ∈in ∪cup ∅emptyset ±pm πpi θtheta ∞infty".split()
_SYMBOLS = str.maketrans(_LOOKALIKES | {macro[0]: rf"\{macro[1:]} " for macro in _MACROS})
# NFKC would turn these into plain digits: 5² into 52, 1½ into 11/2.
_RAISED = re.compile(r"[\u00b2\u00b3\u00b9\u2070-\u207b]+")
_LOWERED = re.compile(r"[\u2080-\u2089]+")
_VULGAR = re.compile(r"[\u00bc-\u00be\u2150-\u215e\u2189]")
# LaTeX would read \sqrt 45 as the root of 4, times 5.
_ROOT = re.compile(r"√\s?(?:\(([^()]{1,80})\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))")

# A thin space between digits groups them; elsewhere it parts what it stands between.
_SPACING = re.compile(
    r"(?<=[0-9],)\\!\s{0,3}(?=[0-9]{3})|\\(?:left|right|displaystyle|tiny|small|[lL]arge|LARGE|[hH]uge)"
    r"(?![a-zA-Z])|(?<=[0-9])\\[,;:](?=[0-9]{3})|(?<!\\)\\!|(?<!\\)\\[()\[\]]"
)
_BLANK = re.compile(r"(?<!\\)\\[ ,;:]|\\q?quad(?![a-zA-Z])|(?<!\\)~(?=\\|\d|[A-Za-z])")
_DOLLAR = re.compile(r"(?<!\\)\$")
_CURRENCY = re.compile(r"\\\$|(?<!\\)\$(?=\s?\.?[0-9])")
_CURRENCY_MARK = "\ue000"
_TEXT_MACRO = r"text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox|hbox|ce"
_MACRO = (
    rf"\\(?:{_TEXT_MACRO}|math(?:tt|bb)?|operatorname|f?boxed|boldsymbol|bm|pmb|underline"
    r"|(?:text)?color\s?\{[^{}]{1,20}\})\s?"
)
_WRAPPER = re.compile(_MACRO + r"(?=\{)")
INNER_TEXT = re.compile(rf"\\(?:{_TEXT_MACRO})\s?\{{([^{{}}]*)\}}")
"""Text set inside mathematics; the group is the text."""
FRACTION = r"\\[dt]?frac\s?\{[^{}]{1,20}\}\s?\{[^{}]{1,20}\}"
"""A pattern for a fraction of LaTeX, without groups."""
_NESTED_TEXT = re.compile(_MACRO + r"\{\s?(" + _MACRO + r"\{[^{}]*\})\s?\}")
# Upright i and e are the constants, no text.
_CONSTANT = re.compile(r"\\(?:text|mathrm|operatorname|rm)\s?\{\s?([ie])\s?\}")
_INDEX_TEXT = re.compile(r"_\s?\{\s?\\(?:text|mathrm|rm)\s?\{?([^{}]*)\}?\s?\}")
_DOUBLE_BRACES = re.compile(r"\{\{([^{}]*)\}\}")
_QUOTES = (
    *(("**", "**"), ("__", "__"), ("*", "*"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”")),
    ("‘", "’"),
    *(("《", "》"), ("「", "」"), ("『", "』")),
)
_NAMED = re.compile(
    r"(?P<name>(?:\\[A-Z][a-z]{1,6}|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|sigma|rho|omega|Delta)\s?"
    r"(?:[A-Za-z](?![a-zA-Z]))?|[A-Za-z](?![a-zA-Z]))(?:_\s?(?:\w|\{[^{}]{1,12}\}|\\[a-z]{1,8}))?'?"
    r"(?:\s?\([A-Za-z0-9,\s\\]{1,12}\))?"
    r"|[A-Za-z]{3,15}(?: [a-z]{3,12})?|\\det)\s?(?:=|\\approx|:=)\s?(?=[^=\s])"
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


@lru_cache(maxsize=2048)
def plain(text: str) -> str:
    """Return the text without maths delimiters, emphasis, quotes or a closing full stop.

    Full-width characters become ordinary ones (NFKC); powers and fractions that Unicode writes as
    one character become `^{2}` and `1/2`. A dollar sign stays where it is money.
    """
    text = text.strip()
    if not text.isascii():
        text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
        text = _RAISED.sub(lambda mark: "^{" + _normal(mark) + "}", text.replace("√", r"\sqrt "))
        text = _LOWERED.sub(lambda mark: "_{" + _normal(mark) + "}", text.translate(_SYMBOLS))
        text = _VULGAR.sub(lambda mark: " " + _normal(mark), text)
        text = unicodedata.normalize("NFKC", text).replace("\u2044", "/").replace("−", "-")
    if "\\" in text or "{" in text:
        # A column of a table of data often holds its LaTeX with every backslash doubled.
        text = re.sub(
            r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|pi|text|left|right|infty)(?![a-z]))", r"\\", text
        )
        text = _INDEX_TEXT.sub(r"_{\1}", _NESTED_TEXT.sub(r"\1", _CONSTANT.sub(r"{\1}", text)))
        text = _DOUBLE_BRACES.sub(r"{\1}", re.sub(r"\{([,:])\}", r"\1", text))
        text = text.replace(r"\%", "%").replace("\\tfrac", "\\frac")
        text = re.sub(r"\\degrees?(?![a-zA-Z])", "°", text)
    # Dollar signs come in pairs around mathematics; an odd one in front of a digit is money.
    if len(_DOLLAR.findall(text)) % 2:
        text = _CURRENCY.sub(_CURRENCY_MARK, text, count=1)
    text = text.replace(r"\$", _CURRENCY_MARK).replace("$", "").replace(_CURRENCY_MARK, "$")
    text = _BLANK.sub(" ", _SPACING.sub("", text)).strip()
    for _ in range(3):
        text = _unwrapped(text)
    return text


def opened(text: str) -> str:
    """Return `plain(text)` with the text that is set inside mathematics as a part of it."""
    return plain(INNER_TEXT.sub(r" \1 ", plain(text)))


def named_value(text: str) -> tuple[str, str]:
    """Return the name in front of the only `=`, if there is one, and `plain(text)` behind it."""
    text = plain(text)
    is_equation = text.count("=") + text.count("\\approx") == 1
    named = _NAMED.match(text) if is_equation else None
    if named is None or named["name"].lower() in _FUNCTION_NAMES:
        return "", text
    return named["name"].strip(), text[named.end() :]


def plain_value(text: str) -> str:
    """Return `plain(text)` without a leading `x =`, `f(2) =` or `area =`."""
    return named_value(text)[1]


def plain_words(text: str) -> str:
    """Return the text for comparison word by word.

    Case, spacing, punctuation, quotes, `the` and a leading article carry no meaning; a question
    mark does, and so do hyphens between digits.
    """
    text = INNER_TEXT.sub(r"\1", plain(text)).replace(r"\cdot ", " ").replace(r"\times ", " x ")
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


def _normal(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match.group()).replace("−", "-").replace("\u2044", "/")


def _unwrapped(text: str) -> str:
    text = text.strip().removesuffix(".").removesuffix("。").strip()
    for opening, closing in _QUOTES:
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if inner and opening not in inner and closing not in inner:
                return inner
    macro = _WRAPPER.match(text)
    group = text[macro.end() :] if macro else text
    inner = group[1:-1]
    # Braces around one expression group nothing; around a name or a number they are a set.
    is_group = macro or ("\\" in inner and "," not in inner)
    if group[:1] == "{" and group[-1:] == "}" and is_group:
        # They belong together if no brace inside closes more than was opened before it.
        depths = accumulate((sign == "{") - (sign == "}") for sign in inner)
        if min(depths, default=0) >= 0:
            return inner
    return text
