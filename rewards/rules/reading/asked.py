"""Tells what a sentence says of its own from what it repeats of the question.

A sentence of the question's words and of words that say nothing, and of one thing more, states
that thing: "After three days she has read 48 pages" answers how many pages she reads in 3 days.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rewards.rules.reading.number_words import words_to_number
from rewards.rules.reading.units import read_unit

MAX_QUESTION_CHARS = 4000

# These say nothing of what is asked.
EMPTY_WORDS = frozenset(
    """a an the is are was were be it this that these there he she they them his her hers their its
    do does did will can has have had to in on at of by as for from with and so both total
    altogether exactly only just after according table chart graph figure picture image row column
    value entry cell order i.e ie""".split()
)
PLACES = frozenset({"to", "in", "on", "at"})
_ASIDE = frozenset({"to", "in", "at", "after", "by", "from", "for", "with"})
_BOUNDS = frozenset({"after", "by", "from"})
"""With these a value is a circumstance or a bound; `on 3 May` and `in May 2020` are neither."""
_SOURCES = frozenset({"table", "chart", "graph", "figure", "picture", "image", "row", "column"})
_RATES = frozenset({"a", "an", "per", "each", "every"})
_VERDICTS = frozenset(
    {"answer", "option", "choic", "solution", "element", "result", "correct", "right", "one"}
    | {"only", "her", "event", "happen", "occurr", "tak", "plac", "locat", "point", "meet", "lie"}
)
"""Stems of words that add nothing to what is asked."""
_PAST = {"ate": "eat", "bought": "buy", "sold": "sell", "paid": "pay", "spent": "spend"}
_PAST |= {"took": "take", "began": "begin", "went": "go", "made": "make", "got": "get"}
_PAST |= {"won": "win", "lost": "lose", "wrote": "write", "gave": "give", "left": "leave"}
_PAST |= {"cost": "pay", "costs": "pay"}
_PAST |= {"met": "meet", "ran": "run", "drove": "drive", "found": "find", "needed": "need"}
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_END = re.compile(r"[\s.。]+$")
_NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|none|cannot|wrong|incorrect|false|except|without|unless|if"
    r"|instead|rather|but|almost|nearly|than)\b|n[’']t\b|不|没|非|否|错|未|若|如果|除",
    re.IGNORECASE,
)
# "By the table, ...": where the answer is from, if it holds no number.
_INTRODUCTION = re.compile(
    r"(?:by|using|from|looking|reading|according|based|counting|adding)\b[^,0-9=]{1,80}, ?",
    re.IGNORECASE,
)
_OPTIONS = re.compile(r"(?:^|(?<=\s))[(（]?A\s?[.)）、．:：]\s")
_SEVERAL = re.compile(r"[0-9]|,| and ")
_CHINESE_EMPTY = re.compile(
    r"(?:一共有?|总共有?|共有|因此|所以|故|答[：:]?|可以|一定|应该|正好|刚好|[，,：:\s])+"
)
_CHINESE_VALUE = re.compile(
    r"(.{0,60}?)(-?[0-9][0-9.,]*(?:%|[年月][0-9年月日号]{1,8})?)([^0-9]{0,40})", re.DOTALL
)
_CHINESE_NAME = re.compile(
    r"(.{2,60}?[是为])(?:[\u4e00-\u9fff]{0,4}(?:诗人|[学画作]家|音乐家|皇帝|总统|首都|城市))?(.{1,40})",
    re.DOTALL,
)


@dataclass(frozen=True)
class Asked:
    """The words of a question, for comparison with those of an answer."""

    text: str
    stems: tuple[str, ...]
    numbers: frozenset[str]
    """In digits, words and digits alike."""

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, question: str) -> Asked:
        text = _OPTIONS.split(question[:MAX_QUESTION_CHARS], maxsplit=1)[0]
        words = {str(words_to_number(word)) for word in _WORD.findall(text.casefold())}
        return cls(text, tuple(stems(text)), frozenset({*_NUMBER.findall(text), *words} - {"None"}))

    def covers(self, words: str) -> bool:
        """Whether words add nothing to the question; without a question, always."""
        return not self.stems or all(
            stem in self.stems or stem in _VERDICTS for stem in stems(words)
        )

    def echoed(self, word: str) -> bool:
        """Whether a word is of the question, or says nothing."""
        bare = re.sub(r"['’]s$", "", word.strip("'\"“”,:—-*")).casefold()
        if not bare or bare in EMPTY_WORDS:
            # "A" may be an option or a name, and an article that stays does no harm.
            return word.strip(",") != "A"
        number = str(words_to_number(bare) or bare)
        return number in self.numbers or bool(_WORD.fullmatch(bare) and _stem(bare) in self.stems)

    def in_order(self, words: Sequence[str]) -> bool:
        rest = iter(self.stems)
        return all(stem in rest for stem in stems(" ".join(words)))


def beside_question(clause: str, asked: Asked) -> str:
    """What remains of a clause without the words of the question around it; nothing if in doubt.

    Example: left, of "The arrow points to the left." to "Where does the arrow point?"
    Around a name the words have to come in the order of the question: "Rome beat Naples" is no
    answer to "Who beat Rome?". Numbers and lists are told from them by what they are.
    """
    if clause.rstrip().endswith("?") or _NEGATION.search(clause):
        return ""
    words = _END.sub("", _INTRODUCTION.sub("", clause, count=1)).split()
    start, end = 0, len(words)
    while start < end and asked.echoed(words[start]):
        start += 1
    while start < end and asked.echoed(words[end - 1]) and not _is_counted(words[start:end], asked):
        end -= 1
    value = " ".join(words[start:end]).strip(" ,:—")
    before, after = words[:start], words[end:]
    if not value or _is_doubtful(before, value, after):
        return ""
    is_agent = before[-1:] == ["by"]
    in_order = asked.in_order(before) and asked.in_order(after)
    return value if is_agent or in_order or _SEVERAL.search(value) else ""


def _is_doubtful(before: Sequence[str], value: str, after: Sequence[str]) -> bool:
    """Whether the words next to a value make it a part of something else, or a circumstance."""
    last, following = (word[0].casefold() if word else "" for word in (before[-1:], after[:1]))
    is_number = value[:1].isdigit()
    # "In 3 hours" is no time that something takes, "48 pages a day" no number of pages.
    is_aside = last in (_ASIDE if is_number else _BOUNDS) and _SEVERAL.search(value)
    is_joined = "and" in (last, following) or (last.endswith(",") and not is_number)
    # "Table tennis" is one thing.
    is_compound = last in _SOURCES and not is_number
    return bool(is_aside) or is_joined or is_compound or following in _RATES


def beside_chinese(clause: str, asked: Asked) -> str:
    """The same of Chinese, which does not part its words: around the value the question's own."""
    text = _END.sub("", clause)
    if not re.search(r"[\u4e00-\u9fff]", text) or _NEGATION.search(text):
        return ""
    if match := _CHINESE_VALUE.fullmatch(text):
        before, value, after = match.groups()
        # "120米" is not 120 to a question of 千米.
        size = next((size for size in range(4, 0, -1) if read_unit(after[:size])), 0)
        value, after = value + after[:size], after[size:]
        around = (_CHINESE_EMPTY.sub("", part) for part in (before, after))
        return value if all(part in _CHINESE_EMPTY.sub("", asked.text) for part in around) else ""
    match = _CHINESE_NAME.fullmatch(text)
    is_asked = match and match[1] in asked.text
    return match[2] if match and is_asked else ""


def stems(text: str) -> list[str]:
    """The words of a text that say something, without their endings."""
    words = _WORD.findall(text.casefold())
    return [_stem(word) for word in words if word not in EMPTY_WORDS]


def _is_counted(words: Sequence[str], asked: Asked) -> bool:
    """Whether the last word is what the number before it counts."""
    if len(words) < 2 or words[-1].casefold() in EMPTY_WORDS:
        return False
    return words[-2][-1].isdigit() and not asked.echoed(words[-2])


def _stem(word: str) -> str:
    word = _PAST.get(word, word)
    for ending in ("ing", "ers", "er", "ies", "es", "ed", "s", "e", "y"):
        if len(word) > len(ending) + 2 and word.endswith(ending):
            return word.removesuffix(ending)
    return word
