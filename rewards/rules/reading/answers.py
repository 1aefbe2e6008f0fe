"""Finds what an answer text states as its final answer, in linear time.

Recognised are `\\boxed{...}`, `<answer>...</answer>`, statements (`Answer: ...`, `the answer
is ...`, `答案：...`) and `#### ...`. A text with no marker is its own answer when it is short, else
its last sentence is. Of several answers the last one counts alone where the text between them takes
the earlier ones back ("wait, that is wrong"). An answer may be fenced as code, or be the field
`answer` of a JSON object. Nothing is evaluated here.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import zip_longest

MAX_CHARACTERS = 20_000
"""A longer answer text states nothing: no question is answered by a book."""
MAX_BARE_CHARACTERS = 200
"""Longest text, or last sentence, that may stand for itself, without any marker."""
MAX_FINALS = 16
"""A text that states more answers than this states none."""

_BRACES = re.compile(r"\\[{}\\]|\\(?:boxed|fbox)\s{0,3}\{|[{}]")
_GAP = r"[ \t]{0,8}(?:\r?\n[ \t]{0,8}){0,2}"
_ANSWER = r"(?:answer|option|choice)"
# The label of a statement; what it states runs to the end of the line or to the next label.
_LABEL = re.compile(
    rf"(?<![\"“'‘「])\banswer(?:\*\*)?\s?(?:is)?\s?[:：](?:\*\*)?{_GAP}"
    rf"|答案(?:\*\*)?\s?(?:是|为|应为|应该是)?\s?[:：](?:\*\*)?{_GAP}"
    r"|答案(?:应该?)?(?:是|为)\s?|故选\s?[:：]?|(?<=[，。；\s])选择?[:：]?\s?(?=[(（]?[A-H](?![a-zA-Z]))"
    rf"|\b(?:the|final|my|correct|right) (?:(?:final|correct|right) )?{_ANSWER}"
    r"(?: to (?:the|this) (?:question|problem|exercise))? (?:is|would be|must be)\s"
    r"|\bthe answer's\s|\bans\s?[:：]\s?"
    rf"|^[ \t]{{0,3}}#{{4}}\s?(?=\S)"
    rf"|^[ \t]{{0,3}}(?:#{{1,4}}\s?)?(?:\*\*)?(?:final )?answer(?:\*\*)?"
    r"[ \t]{0,3}(?:\r?\n[ \t]{0,8}){1,2}",
    re.IGNORECASE | re.MULTILINE,
)
_RETRACTED = re.compile(
    r"\b(?:wrong|mistake|correction|corrected|correcting|on reflection"
    r"|on second thought|wait|actually|re-?check(?:ed|ing)?"
    r"|should be|incorrect|instead|oops|scratch that)\b"
    r"|不对|错了|更正|应该是|重新|修正",
    re.IGNORECASE,
)
_THOUGHT_END = "</think>"
_OPEN, _CLOSE = "<answer>", "</answer>"
# Beside a marked answer these take it back or add a second one; so does a number after it.
_HEDGE = re.compile(r"或|\b(?:or|either|maybe|perhaps|possibly|alternatively|not)\b", re.I)
_TAKEN_BACK = re.compile(
    r"[\s.,;。，；)）$*]{0,8}(?:(?:or|maybe|perhaps|possibly|alternatively|actually|wait"
    r"|hmm|but maybe|but (?:it|that) (?:could|might|may)|no,|on second thought"
    r"|it (?:could|might|may) (?:also )?be)\b"
    r"|(?:is|was|would be|seems|must be) (?:[a-z]{1,12} )?(?:wrong|incorrect|false|not)\b"
    r"|或|也可能|也许|可能|不对|等等)[^\r\n]{0,80}",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d")
# What is only said in case another answer is wrong takes nothing back.
_RESERVED = re.compile(
    r"\b(?:in case|unless|otherwise|should(?! be| have| equal)|(?:might|may|could) be"
    r"|if\b(?=[^.\n]{0,24}\b(?:wrong|incorrect|mistake|not)\b))\b|如果|若|万一|否则|可能",
    re.IGNORECASE,
)
# In front of a marked answer, in its own clause: "it is not true that the answer is 12".
_DENIED = re.compile(
    r"(?:\b(?:not|never|nobody|no one|might|may|would|tempted|people|untrue|false"
    r"|wrong|incorrect|doubt|cannot|unlikely)\b|n't\b)"
    r"(?:(?!\b(?:so|thus|hence|therefore|then|and|but|because|since|we|is)\b)[^.,;:])*"
    r"\b(?:that|say|think|believe|claim|case|equals?|be|not)\b[\s$*]*(?:that[\s$*]*)?$"
    r"|(?:\b(?:not|of|than|twice|half)|n't)[\s$*]*$|(?:并非|不是|不认为)$",
    re.IGNORECASE,
)
SUPPOSED = re.compile(
    r"\s*(?:(?:if|unless|suppos\w+|assum\w+|in case)\b(?! we\b| you\b| i\b)|如果|假设|假如|若)",
    re.IGNORECASE,
)
"""How a sentence begins that only holds under a condition."""
MAX_CLAUSE = 80
_ON_THE_WAY = re.compile(r"\b(?:intermediate|auxiliary|partial|preliminary)\b|中间", re.IGNORECASE)
_FINAL = re.compile(r"\bfinal(?:ly)?\b|最终|最后", re.IGNORECASE)
_FENCED = re.compile(r"```[a-zA-Z]{0,10}[ \t]{0,3}\n(.*?)\n?```", re.DOTALL)
_ANSWER_KEYS = frozenset({"answer", "final_answer", "final answer", "result"})
_WORKING_KEYS = frozenset({"reasoning", "explanation", "thought", "thoughts", "steps", "solution"})
MAX_JSON_CHARACTERS = 2000
_SENTENCE_END = re.compile(r"(?<=[.?])\s+|(?<=[^0-9]!)\s+|(?<=[。！？])\s*|\s*\n\s*")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|mt|vs|approx|prof|jr|sr|[a-z])\.$", re.I)


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
    What takes the last answer back right after it ("\\boxed{12}. Or maybe 13") counts as one, too.

    Example: final_answers("so \\\\boxed{12}") == ["12"]
    """
    if len(text) > MAX_CHARACTERS:
        return []
    marked = _marked(text)
    if len(marked) > MAX_FINALS:
        return []
    finals = _marked_answers(text, marked) if marked else _bare_answer(text[_thought_end(text) :])
    return list(dict.fromkeys(field for final in finals for field in _fields(_unfenced(final))))


def _marked_answers(text: str, marked: list[_Marked]) -> list[str]:
    """What the markers state, without what is taken back before the last of them."""
    last = marked[-1]
    marked = [one for one in marked if not _is_retracted(text, one, last)]
    finals = [
        text[_stated_from(text, one) : one.inner_end].strip()
        for one in marked
        if not _is_spoken_for(one, [other for other in marked if one.holds(other)], text)
    ]
    if taken_back := _TAKEN_BACK.match(text, max(one.end for one in marked)):
        finals.append(taken_back.group().strip())
    return finals


def _is_retracted(text: str, one: _Marked, last: _Marked) -> bool:
    if one is not last and _ON_THE_WAY.search(_before(text, one)):
        return bool(_FINAL.search(_before(text, last)))
    if not _RETRACTED.search(text, one.end, last.start):
        return False
    start = max(text.rfind(end, 0, one.start) for end in ".?!。\n") + 1
    return not _RESERVED.search(text[max(start, one.start - MAX_CLAUSE) : one.start]) and (
        not _RESERVED.search(text, one.end, last.start)
    )


def _before(text: str, one: _Marked) -> str:
    """What its sentence says in front of a marked answer."""
    before = text[max(0, one.start - MAX_CLAUSE) : one.start]
    return re.split(r"[.?!。！？\n]", before)[-1]


def _stated_from(text: str, one: _Marked) -> int:
    """Where the content begins; the sentence, if it denies or supposes what the marker states."""
    sentence = _before(text, one)
    is_denied = _DENIED.search(sentence) or SUPPOSED.match(sentence)
    return one.start - len(sentence) if is_denied else one.inner_start


def _unfenced(text: str) -> str:
    fenced = _FENCED.fullmatch(text.strip())
    return fenced[1] if fenced else text


def _fields(text: str) -> list[str]:
    """The answers of a JSON object with nothing else but working; else the text itself."""
    if not (text.startswith("{") and text.endswith("}") and len(text) <= MAX_JSON_CHARACTERS):
        return [text]
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return [text]
    answers = [value for key, value in pairs if key.casefold() in _ANSWER_KEYS]
    keys = {key.casefold() for key, _ in pairs}
    if not answers or keys - _ANSWER_KEYS - _WORKING_KEYS:
        return [text]
    return [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in answers]


def answer_start(text: str) -> int | None:
    """Return the offset at which the content of the last marked final answer begins.

    White space after the marker is skipped. Without a marker the whole text is the answer; a text
    of white space alone gives None. Works for texts of any length, in linear time.
    """
    marked = _marked(text)
    start = marked[-1].inner_start if marked else _thought_end(text)
    rest = text[start:]
    begins = start + len(rest) - len(rest.lstrip())
    return begins if begins < len(text) else None


def sentences(text: str) -> list[str]:
    """Split a text into its sentences and lines; a point after an abbreviation ends nothing."""
    found: list[str] = []
    for piece in _SENTENCE_END.split(text.strip()):
        if found and _ABBREVIATION.search(found[-1][-12:]):
            found[-1] = f"{found[-1]} {piece}"
        elif piece:
            found.append(piece)
    return found


def _bare_answer(text: str) -> list[str]:
    bare = text.strip()
    if not bare:
        return []
    if len(bare) <= MAX_BARE_CHARACTERS:
        return [bare]
    pieces = sentences(bare)
    last = pieces[-1] if pieces else ""
    return [last] if len(pieces) > 1 and len(last) <= MAX_BARE_CHARACTERS else []


def _marked(text: str) -> list[_Marked]:
    """Every marker that counts, by where it starts."""
    begin = _thought_end(text)
    boxes = [one for one in _boxes(text) if one.start >= begin]
    statements = [one for one in _statements(text) if one.start >= begin]
    if boxes:
        # A box is the answer, whatever the prose elsewhere calls one.
        starts = [box.start for box in boxes]
        statements = [one for one in statements if _any_within(starts, one)]
    tags = [one for one in _tags(text) if one.start >= begin]
    return sorted([*boxes, *tags, *statements], key=lambda one: one.start)


def _thought_end(text: str) -> int:
    """Where the reasoning that a template closes with a tag is over."""
    place = text.rfind(_THOUGHT_END)
    return 0 if place < 0 else place + len(_THOUGHT_END)


def _any_within(starts: list[int], outer: _Marked) -> bool:
    place = bisect_left(starts, outer.inner_start)
    return place < len(starts) and starts[place] < outer.inner_end


def _boxes(text: str) -> list[_Marked]:
    """Every `\\boxed{...}` with balanced braces; one pass, so unbalanced floods stay cheap."""
    found: list[_Marked] = []
    # A brace of no box is only counted: kept matches of a flood of them would cost time.
    opened: list[re.Match[str] | None] = []
    for brace in _BRACES.finditer(text):
        symbol = brace.group()
        if symbol.endswith("{") and symbol != r"\{":
            opened.append(brace if len(symbol) > 1 else None)
        elif symbol == "}" and opened:
            start = opened.pop()
            if start:
                found.append(_Marked(start.start(), brace.end(), start.end(), brace.start()))
    return sorted(found, key=lambda one: one.start)


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
    labels = list(_LABEL.finditer(text))
    for label, following in zip_longest(labels, labels[1:]):
        start = label.end()
        next_start = following.start() if following else len(text)
        if following and not text[start:next_start].strip():
            # "Answer: the final answer is 12": the second label says it.
            continue
        line_end = text.find("\n", start, next_start)
        end = next_start if line_end < 0 else line_end
        # A statement inside a one-line <answer> ends before the tag closes.
        closing = text.find(_CLOSE, start, end)
        end = closing if closing >= 0 else end
        # "**Answer: 12**": the mark that closes opened before the label.
        inner = text[start:end].rstrip()
        end = start + len(inner) - (2 if inner.endswith("**") and inner.count("**") % 2 else 0)
        found.append(_Marked(label.start(), end, start, end))
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
