"""Finds what a text claims as its answer, in linear time. Nothing is evaluated here.

In order of trust: boxes (`\\boxed{...}`) and `<answer>...</answer>`; then statements
(`Answer: ...`, `the answer is ...`, `答案：...`, `#### ...`, a last line `A: ...`); then the text
itself where it is short, else its last sentence. The last candidate of the most trusted kind
counts. Several that stand side by side, with nothing between them that says more than "and", are
the members of one answer. What is marked is never voided by words elsewhere in the text, only by
those that touch it: "\\boxed{12} is wrong", "\\boxed{12} or 13", "I doubt that the answer is 12".
"""

import json
import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

from rewards.rules.reading.wording import SUPPOSED, any_of, pattern_of
from rl.loop.stages import CLOSE_THINK

MAX_CHARACTERS = 20_000
"""A longer answer text states nothing: no question is answered by a book."""
MAX_BARE_CHARACTERS = 300
"""Longest text, or last sentence, that may stand for itself, without any marker."""
MAX_MARKED = 64
"""A text that marks more answers than this claims none."""
MAX_JSON_CHARACTERS = 2000
MAX_CLAUSE = 160

How = Literal["box", "tag", "marker", "last claim"]


@dataclass(frozen=True)
class Candidate:
    """An answer that a text claims."""

    text: str
    how: How
    members: tuple[str, ...] = ()
    """All answers of its sentence or list, itself included, where there are several."""
    after: str = ""
    """The words right behind it: a unit may stand there."""

    @property
    def is_marked(self) -> bool:
        return self.how != "last claim"


class _Mark(NamedTuple):
    """A marker at [start, end) of the text, and what it encloses."""

    start: int
    end: int
    inner_start: int
    inner_end: int
    how: How


_BRACES = re.compile(r"\\[{}\\]|\\(?:boxed|fbox)\s{0,3}\{|[{}]")
# TeX takes one character or one macro where braces are missing; people also mean a whole number.
_BRACELESS = re.compile(
    r"\\(?:boxed|fbox)\s{0,3}(\\[dt]?frac\s?[0-9]{2}|\\sqrt\s?[0-9]"
    r"|\\[a-zA-Z]{1,12}(?:\{[^{}]{0,40}\}){1,2}|-?[0-9][0-9.,/]{0,20}|[A-Za-z](?![A-Za-z]))"
)
# The blank of an exercise: \boxed{\phantom{2}}, \boxed{?}
_BLANK = re.compile(
    r"(?:\s|\\(?:phantom|hspace|rule|underline)\*?\{[^{}]{0,20}\}(?:\{[^{}]{0,12}\})?"
    r"|\\(?:text|mathrm)\{\s*\}|\\q?quad|\\[,;:! ]|\\_|_|\?|~|\\square)*"
)
_GAP = r"[ \t]{0,8}(?:\r?\n[ \t]{0,8}){0,2}"
# The label of a statement; what it states runs to the end of the line or to the next label.
_LABEL = re.compile(
    rf"(?im)(?<![\"“'‘「])\banswer(?:\*\*)?\s?(?:is)?\s?[:：](?:\*\*)?{_GAP}"
    rf"|[【\[]答案[】\]]\s?[:：]?{_GAP}"
    rf"|(?:答案|正确选项)(?:\*\*)?\s?(?:(?:应该?)?[是为]\s?[:：]?|[:：])(?:\*\*)?{_GAP}"
    r"|故选\s?[:：]?|(?:(?<=[，。；\s])|(?<=答案)|(?<=(?<!不)应)|(?<=[本此]题)|(?<=因此)|(?<=所以))"
    r"选择?[:：]?\s?(?=[(（]?[A-H](?![a-zA-Z]))"
    r"|\b(?:the|final|my|correct|right) (?:(?:final|correct|right|best) )?(?:answer|option|choice)"
    r"(?: to (?:the|this) (?:question|problem|exercise))? (?:is|would be|must be)\s"
    r"(?!(?:correct|right|wrong|in|on)\b)|\bthe answer's\s|\bans\s?[:：.]\s?"
    r"|^[ \t]{0,3}(?:#{4}\s?(?=\S)|(?:#{1,4}\s?)?(?:\*\*)?(?:final )?answer(?:\*\*)?"
    r"[ \t]{0,3}(?:\r?\n[ \t]{0,8}){1,2})"
)
# GSM8K's few-shot form; a question may begin with A:, so it has to be the last line.
_LAST_LINE = re.compile(r"(?:^|\n)[ \t]{0,3}A:[ \t]?(?=\S[^\n]*\s*$)")
_TAG = re.compile(r"(?s)<answer>((?:(?!<answer>).)*?)</answer>")
_NAME = r"(?:[A-Za-z](?:_\{?\w{1,3}\}?)?\s?=\s?)"
_NAMED_BEFORE = re.compile(rf"{_NAME}\$*\s?$")
_BESIDE = re.compile(
    rf"[\s,;.&$|\\()\[\]、，；。*-]*(?:\band\b|或者?|\bor\b|和|及)?[\s,$\\(\[*]*{_NAME}?[\s$\\(\[]*"
)
_OR = re.compile(r"(?i)\bor\b|或")
# Right in front of a marked answer, or in the clause of a statement: it is said not to be the
# answer.
_NOT = re.compile(r"(?i)(?:\bnot|n['’]t|\bnever|不是|并非)[\s$*(\\\[]*$")
_DOUBTED = re.compile(
    rf"(?i){any_of('doubts')}"
    r"(?:(?!\b(?:so|thus|hence|therefore|then|but|because|and)\b)[^.,;:])*$"
    rf"|^\s*{SUPPOSED}(?!.*\b(?:then|so|hence|thus|therefore)\b)"
)
_RESERVED = re.compile(
    r"(?i)\b(?:if|unless|should|in case)\b[^.]{0,60}\b(?:wrong|incorrect|mistaken|not right)\b"
    r"|如果.{0,8}错"
)
# Right behind a marked answer.
_WRONG, _ALTERNATIVE, _CORRECTED = (
    re.compile(rf"(?i)[\s.,;。，；)）$*\\\]]{{0,8}}{any_of(name)}(.{{0,100}})")
    for name in ("judged_wrong", "alternatives", "corrections")
)
_VALUE = re.compile(r"(?i)\d|\\boxed|\b[A-J]\b|\b(?:yes|no)\b")
_FENCED = re.compile(r"(?s)\A```[a-zA-Z]{0,10}[ \t]{0,3}\n(.*?)\n?```\Z")
_ANSWER_KEYS = frozenset({"answer", "final_answer", "final answer", "result"})
_WORKING_KEYS = frozenset({"reasoning", "explanation", "thought", "thoughts", "steps", "solution"})
_SENTENCE_END = re.compile(r"(?<=[.?])\s+|(?<=[^0-9]!)\s+|(?<=[。！？])\s*|\s*\n\s*")
_ABBREVIATION = re.compile(r"(?i)\b(?:mr|mrs|ms|dr|st|mt|vs|approx|prof|jr|sr|(?<=\s)[a-z])\.$")
_POLITE = pattern_of("polite")
# Lines that are one: a matrix, and a formula with the words in front of it.
_DISPLAYED = re.compile(
    r"(?s)\$\$.{1,400}?\$\$|\\\[.{1,400}?\\\]|\\begin\{(\w{1,16})\}.{1,400}?\\end\{\1\}|\[\[.{1,400}?\]\]"
)
_OPEN_LINE = re.compile(r"(?<=\b(?:is|be))\s?\n\s{0,8}|(?<=\bare)\s?\n\s{0,8}|(?<=为|是)\n\s{0,8}")


def claimed(text: str) -> Candidate | None:
    """Return what the text claims as its answer, or None if it claims nothing."""
    # Bounds come first: a response is whatever a policy writes.
    if len(text) > MAX_CHARACTERS:
        return None
    begin = len(text) - len(without_reasoning(text))
    marks = _marks(text, begin)
    if len(marks) > MAX_MARKED:
        return None
    if marks:
        return _marked_claim(text, marks)
    # The text itself where it is short, else its last sentence or list.
    bare = _answer_field(unfenced(text[begin:]))
    pieces = [bare] if len(bare) <= MAX_BARE_CHARACTERS else claim_sentences(bare)
    last = pieces[-1] if pieces else ""
    return Candidate(last, "last claim") if 0 < len(last) <= MAX_BARE_CHARACTERS else None


def without_reasoning(text: str) -> str:
    """The text behind the tag with which a template closes the reasoning."""
    return text.rpartition(CLOSE_THINK)[2]


def answer_start(text: str) -> int | None:
    """The offset, behind white space, at which the last marked final answer begins, in linear time.

    Without a marker the whole text is the answer; a text of white space alone gives None.
    """
    begin = len(text) - len(without_reasoning(text))
    marks = _marks(text, begin)
    content = re.compile(r"\S").search(text, marks[-1].inner_start if marks else begin)
    return content.start() if content else None


def sentences(text: str) -> list[str]:
    """Split a text into its sentences and lines; a point after an abbreviation ends nothing."""
    found: list[str] = []
    for piece in _SENTENCE_END.split(text.strip()):
        if found and _ABBREVIATION.search(found[-1][-12:]):
            found[-1] = f"{found[-1]} {piece}"
        elif piece:
            found.append(piece)
    return found


def _marked_claim(text: str, marks: list[_Mark]) -> Candidate:
    last = marks[-1]
    inner = text[last.inner_start : last.inner_end].strip()
    tail = text[last.end : last.end + MAX_CLAUSE]
    first = len(marks) - 1
    # Go back over the answers that stand side by side: one sentence or list, and for statements,
    # which run to the end of their line, one line each.
    while first and _BESIDE.fullmatch(text, marks[first - 1].end, marks[first].start):
        if last.how == "marker" and "\n" not in text[marks[first - 1].end : marks[first].start]:
            break
        first -= 1
    sentence = _sentence_start(text, last.start)
    # "If this is wrong, then \boxed{12}" keeps two answers open.
    before = _sentence_start(text, marks[-2].start) if len(marks) > 1 else last.start
    is_reserved = _RESERVED.search(text[before : last.start])
    # It says that this is not the answer, so the whole sentence is what it claims.
    if _NOT.search(text[max(0, last.start - 12) : last.start]) or _WRONG.match(tail):
        inner = text[sentence : last.end] + tail[:40]
    elif is_reserved:
        inner = " or ".join(_members(text, marks[-2:]))
    elif (either := _ALTERNATIVE.match(tail)) and _VALUE.search(either[1]):
        inner = f"{inner} or {either[1].strip()}"
    elif (corrected := _CORRECTED.match(tail)) and _VALUE.search(corrected[1]):
        return Candidate(corrected[1].strip(" ,:."), "last claim")
    members = _members(text, marks[first:])
    if last.how == "box" and _BLANK.fullmatch(text, last.inner_start, last.inner_end):
        # The blank is filled in behind it: \boxed{} = 8
        filled = re.match(r"\s?\$?\s?[=:]\s?([^\n]{1,60})", tail)
        inner = filled[1].strip() if filled else inner
    if len(members) > 1:
        joined = " or " if _OR.search(text, marks[first].end, last.start) else ", "
        return Candidate(joined.join(members), last.how, members)
    # The boxes of one sentence may be the members of one answer; the kind of the reference decides.
    members = _members(text, [mark for mark in marks if mark.start >= sentence])
    inner = _answer_field(unfenced(inner))
    return Candidate(inner, last.how, members if len(members) > 1 else (), tail[:40])


def _members(text: str, marks: list[_Mark]) -> tuple[str, ...]:
    """What the marks enclose, each once, with the letter that is set equal to it."""
    found: dict[str, None] = {}
    for mark in marks:
        named = _NAMED_BEFORE.search(text[max(0, mark.start - 16) : mark.start])
        name = named.group().replace("$", "") if named and mark.how == "box" else ""
        found[name + text[mark.inner_start : mark.inner_end].strip()] = None
    return tuple(found)


def _sentence_start(text: str, end: int) -> int:
    begin = max(0, end - MAX_CLAUSE)
    breaks = [match.end() for match in re.finditer(r"[.?!](?=\s)|[。！？\n]", text[begin:end])]
    return begin + (breaks[-1] if breaks else 0)


def _marks(text: str, begin: int) -> list[_Mark]:
    """The markers of the most trusted kind that the text has, by where they start."""
    boxes = [mark for mark in _boxes(text) if mark.start >= begin]
    tags: list[_Mark] = []
    for tag in _TAG.finditer(text, begin) if "</answer>" in text else ():
        # A label inside the tag repeats what the tag says.
        labels = [label.end() for label in _LABEL.finditer(tag[1])]
        inner_start = tag.start(1) + (labels[-1] if labels else 0)
        tags.append(_Mark(*tag.span(), inner_start, tag.end(1), "tag"))
    # The blank of an exercise is quoted, and claims nothing.
    filled = [box for box in boxes if not _BLANK.fullmatch(text, box.inner_start, box.inner_end)]
    if boxes or tags:
        # A box inside a tag speaks for it.
        empty = [tag for tag in tags if not any(tag.start <= box.start < tag.end for box in filled)]
        return sorted([*empty, *(filled or ([] if tags else boxes[-1:]))])
    return _statements(text, begin)


def _boxes(text: str) -> list[_Mark]:
    """Every innermost box; the last one may lack its closing brace, or both."""
    found: list[_Mark] = []
    # Push None for a brace that opens no box. We need it to find the closing brace, and storing
    # the match would be slow for a text with very many braces.
    opened: list[re.Match[str] | None] = []
    for brace in _BRACES.finditer(text) if "box" in text else ():
        symbol = brace.group()
        if symbol.endswith("{") and symbol != r"\{":
            opened.append(brace if len(symbol) > 1 else None)
        elif symbol == "}" and opened:
            start = opened.pop()
            # A box around the last one that was closed is not the innermost.
            if start and (not found or start.start() > found[-1].start):
                found.append(_Mark(start.start(), brace.end(), start.end(), brace.start(), "box"))
    # A response that ends without its last brace still says what is in the box.
    box = next((brace for brace in reversed(opened) if brace), None)
    if box and (not found or box.start() > found[-1].start):
        inner = re.split(r"\$|\\\)|\\\]|\n", text[box.end() :], maxsplit=1)[0].rstrip(" .")
        if len(inner) <= MAX_CLAUSE:
            end = box.end() + len(inner)
            found.append(_Mark(box.start(), end, box.end(), end, "box"))
    braceless = _BRACELESS.finditer(text) if "box" in text else ()
    return sorted([*found, *(_Mark(*box.span(), *box.span(1), "box") for box in braceless)])


def _statements(text: str, begin: int) -> list[_Mark]:
    found: list[_Mark] = []
    labels = list(_LABEL.finditer(text, begin))
    if (last_line := _LAST_LINE.search(text, begin)) and not text[last_line.end() :].endswith("?"):
        labels.append(last_line)
    for label, following in zip_longest(labels, labels[1:]):
        start = label.end()
        next_start = following.start() if following else len(text)
        if following and not text[start:next_start].strip():
            # "Answer: the final answer is 12": the second label says it.
            continue
        line_end = text.find("\n", start, next_start)
        end = next_start if line_end < 0 else line_end
        if displayed := _DISPLAYED.match(text, start):
            end = max(end, displayed.end())
        # "**Answer: 12**": the mark that closes opened before the label.
        inner = text[start:end].rstrip()
        end = start + len(inner) - (2 if inner.endswith("**") and inner.count("**") % 2 else 0)
        pieces = sentences(text[start:end])
        if len(pieces) > 1 and not displayed:
            # The statement is one sentence; what follows it is a remark.
            end = text.index(pieces[0].split()[-1], start) + len(pieces[0].split()[-1])
        is_doubted = _DOUBTED.search(text[_sentence_start(text, label.start()) : label.start()])
        if text[start:end].strip() and not is_doubted:
            found.append(_Mark(label.start(), end, start, end, "marker"))
    return found


def claim_sentences(text: str) -> list[str]:
    """The sentences of a claim, without those of politeness; displays and lists stay whole."""
    text = _DISPLAYED.sub(lambda shown: " ".join(shown.group().split()), text)
    return [piece for piece in sentences(_OPEN_LINE.sub(" ", text)) if not _POLITE.search(piece)]


def unfenced(text: str) -> str:
    return _FENCED.sub(r"\1", text.strip())


def _answer_field(text: str) -> str:
    """The answer of a JSON object with nothing else but working; else the text itself."""
    if not (text.startswith("{") and text.endswith("}") and len(text) <= MAX_JSON_CHARACTERS):
        return text
    try:
        pairs = json.loads(text, object_pairs_hook=list)
        keys = [key.casefold() for key, _ in pairs]
    except (ValueError, RecursionError, TypeError):
        return text
    # Two answers, or a key that is no working, make the object a text like any other.
    answers = [value for (_, value), key in zip(pairs, keys, strict=True) if key in _ANSWER_KEYS]
    if len(answers) != 1 or {*keys} - _ANSWER_KEYS - _WORKING_KEYS:
        return text
    return answers[0] if isinstance(answers[0], str) else json.dumps(answers[0], ensure_ascii=False)
