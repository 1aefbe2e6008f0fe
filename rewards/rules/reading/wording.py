"""Words by what they do to a sentence (wording.yaml), as sets and as patterns."""

import re
from pathlib import Path

import yaml

_LISTS: dict[str, str] = yaml.load(
    Path(__file__).with_suffix(".yaml").read_text("utf-8"), yaml.CSafeLoader
)


def words(name: str) -> list[str]:
    return [word.replace("_", " ") for word in _LISTS[name].split()]


def any_of(name: str) -> str:
    """A pattern for any word of a list: between word boundaries in English, anywhere in Chinese."""
    english = "|".join(word for word in words(name) if word.isascii())
    chinese = [word for word in words(name) if not word.isascii()]
    whole_words = [r"(?<!\w)(?:" + english + r")(?!\w)"] if english else []
    return "(?:" + "|".join([*whole_words, *chinese]) + ")"


def pattern_of(name: str) -> re.Pattern[str]:
    return re.compile(any_of(name), re.IGNORECASE)


SUPPOSED = any_of("suppositions") + r"(?! (?:we|you|i)\b)"
"""A pattern for what stands in front of a supposition; "if we add them" supposes nothing."""
