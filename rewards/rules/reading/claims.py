"""What a candidate may say its value is, in the words around it.

A sentence states what stands beside the words of the question ("The capital of France is Paris"),
behind its verb, behind its last "=", alone in bold or as mathematics, or as its only number. A
clause with a word that denies, compares or supposes states nothing but itself, unless the question
has that word too.
"""

import re
from collections.abc import Iterator
from itertools import islice

from rewards.rules.reading.candidates import claim_sentences
from rewards.rules.reading.notation import FRACTION, plain
from rewards.rules.reading.numbers import SCALE, TIMES_TEN
from rewards.rules.reading.question import Question, stem_of
from rewards.rules.reading.units import read_unit
from rewards.rules.reading.wording import SUPPOSED, any_of, pattern_of, words

MAX_CLAIM_CHARS = 400
"""A longer candidate is only read as it stands."""
MAX_SUBJECT_WORDS = 16
MAX_VERBS = 4

Reading = tuple[str, ...]
"""Values that all have to be right: "1/2 = 0.5" and "twelve (12)" state two."""

HEDGE = pattern_of("hedges")
_HEDGED = re.compile(
    r"(?i)^((?:(?:i think |so |the answer is )*"
    r"(?:it|that|this|[a-z]|the [a-z ]{1,40}) (?:is|was|=)\s)?)"
    r"(?:most |very )?(?:probably|likely|perhaps|maybe|possibly),?\s(?!not\b)"
)
_CHANGES = pattern_of("changes")
# What makes a remark behind an answer more than a remark.
_MORE = re.compile(rf"(?i)\d|{any_of('changes')}")
_GRADER = pattern_of("grader")
_OPENING = re.compile(
    rf"(?i)(?:(?:{any_of('openings')}|yes(?=\s?,))\s?[,:：]?\s?|∴\s?|{any_of('chinese_openings')}\s?[,，:：]?\s?"
    r"|(?:[a-z]{3,12}ing\b[^.;\n]{0,40}?)?\b(?:we|i|you) (?:can |would |will )?"
    rf"{any_of('findings')}(?: that)?\s?:?\s?"
    r"|(?:this|which|it|that|\w+ing) (?:gives|yields|means|makes)(?: that)?\s?)+"
)
_SUPPOSED = re.compile(SUPPOSED, re.IGNORECASE)
# In front of the main clause: "After giving away 9, ..." but not "If ...".
_SUBORDINATE = re.compile(r"(?i)" + any_of("subordinate") + r"[^,=]{1,80}, ?(?=\S)")
_VERB = re.compile(
    r"(?i)(?<=\s)(?:(?:is|was|are|were) (?:called|named|made (?:up )?of|composed of|equal to"
    r"|known as|[a-z]{3,12}(?:ed|en|wn|nt|de|ng) by|(?:located|found) (?:in|at)|in|on|by|at)"
    rf"|(?:has|have) an? [a-z]{{1,12}} of|{any_of('verbs')})"
    r"\s?(?:just|only|exactly|about to be|:|therefore|thus|then|simply)?\s{0,3}"
    rf"|^(?:it|that|this|there|he|she|they)(?:'s|'re)\s+|{any_of('chinese_verbs')}\s?"
)
_SUBJECT = re.compile(
    r"(?i)(?:(?:so|thus|hence|therefore),? )?(it|that|this|the \w{1,20}) (?:is|was) "
)
_NO_ANSWER = re.compile(r"(?s)[?,:]$|=|^(?:[Yy]es|[Nn]o)\b|^(?=.*[\u4e00-\u9fff])\S{9,}$")
_VALUE_FIRST = re.compile(
    r"(?i)(.{1,80}?) (?:is|was|are|were) (?:the|a|an|correct|right|my)\b(.{0,120})"
    r"|(.{1,40}?)(?:是|为)(?:正确的|对的|.{1,40}的.{1,20})"
)
_OWNED = re.compile(r"(?i)['’]s (\w+)\s*$|^(?:so )?the (\w+) of\b")
_GENERIC = frozenset(words("generic"))
_REJECTED = re.compile(
    r"(?i)\s?[,;(（，]\s?(?:(?:and |but )?not|rather than|instead of|unlike|而不是|不是)\b"
    r"[^,;]{1,60}[)）]?$|\s(?:rather than|instead of)\s[^,;]{1,60}$"
    # "Not 7 but 8", which is no "not only".
    r"|(?:n['’]t|\s?\bnot)\s(?!only|just|merely|simply)[^.,;]{1,40},?\sbut\s(?!also\b|not\b)"
)
_REMARK = re.compile(
    rf"(?is)\s?[,;，；]\s?{any_of('remarks')}.*$"
    r"|\s(?:because|since|due to|as (?:an?|the|we|it|required)\b).*$|(?:因为|由于).*$"
    r"|\s(?:in|around|about|circa|during|since) (?:the )?(?:year |early |late )?[12]\d{3}s?\.?$"
    r"|\s?\((?:for|since|because|as|where|when|with)\b[^()]{0,80}\)$"
)
_CONCLUSION = re.compile(
    rf"(?i)\s?(?:[,;，；—–]|\s-\s)\s?(?:{any_of('conclusions')}|(?:leav|giv|yield|produc|mak)ing(?!\s\w+ing))\s?[,，:：]?\s?"
    r"|\s?[;；—–]\s?|\s(?:so|hence|thus|therefore|i\.e\.),?\s|[:：]\s|[,，]\s?"
    r"(?=(?:we (?:get|have|find|obtain)|the (?:answer|total|change|result|final|winner|host) ))"
)
_COORDINATED = re.compile(
    r",?\s(?:and|while|whereas|but)\s(?=(?:(?:the|he|she|it|they|their|its|his|her) "
    r"|(?:an? )?\w+ (?:is|was|are|were|has|had|died|lost|won)\b))"
    r"|,\s(?=[A-Z]\w* (?:is|was|lost|won|has)\b)"
)
_NUMBER = re.compile(
    rf"(?:(?:US|HK)?[$€£¥]\s?)?[-+]?(?:{FRACTION}"
    r"|(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+|\s\d+/\d+)?"
    rf"(?:{TIMES_TEN})?)(?:\s?(?:%|percent\b|{SCALE}))?"
)
# The signs of mathematics, except for ∴ and ≈.
_SIGN = r"[<>|*/+±×÷¬\u2200-\u2233\u2235-\u2247\u2249-\u22ff\u2a00-\u2aff-]"
# What makes a number behind it another one, or a bound: \sqrt 7, log 7, ≥ 7, the square root of 7.
_OPERATOR = re.compile(
    rf"(?:\\(?!{any_of('neutral_commands')})[a-zA-Z]+|{_SIGN}"
    rf"|(?i:{any_of('operators')}(?:\s?\}})?(?: of(?: the)?)?))[\s${{}}]*$"
)
_NOT_ALONE = re.compile(
    r"(?i)(?:[\w^_{\\([]|\b(?:before|after|since|than|over|under|about|around|to|from"
    r"|in|by|and)\s?)$"
)
# A mark of exclamation in front of a new sentence is a cry, and elsewhere a factorial.
_GOES_ON = re.compile(
    rf"\s?(?:{_SIGN}|[\^_}}\\(='′″]|!(?!\s+[A-Z]))|\w"
    r"|\s?[^\s.,;]{1,20} (?:an?|per|each|every)\s"
)
_BEHIND = re.compile(r"\s?[A-Za-z°%][^\s,;()]{0,20}(\s(?:per )?[a-z]{2,16})?")
_ASKED_TYPES = tuple(
    (re.compile(rf"(?i)\b{asks}\b"), re.compile(value, re.IGNORECASE))
    for asks, value in (
        ("(?:which|what) year", r"(?<![\d.,$])[12]\d{3}(?![\d.,]?\d|\w| ?(?:bc|b\.c|ad\b))"),
        ("(?:which|what) (?:week)?day", r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"),
        ("(?:which|what) month", any_of("months")),
        ("by (?:what|which|how)", r"(?<=\bby )[$€£]?\d[\d.,]*(?:\s?%|\spercent\b)?(?= last|[.]?$)"),
    )
)
_BOUND = re.compile(r"(?i)" + any_of("bounds") + r"\s(?:the |an? )?$")
# "It has 1 seat, 2 pedals and 3 wheels."
_COUNTS = re.compile(
    r"(?i)[^\d,]{0,80}?\b(\d[\d,]*\d? [a-z]{2,20}(?:(?:, |,? and )\d+ [a-z]{2,20}){1,6})"
    r"(?: (?:is|are|was|were) [a-z]{2,12})?"
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_MATHS = re.compile(r"\$\$?([^$\n]{1,200})\$\$?|\\\(([^\n]{1,200}?)\\\)|\\\[(.{1,200}?)\\\]")
_RELATED = re.compile(r"(?i)" + any_of("relations") + r"\s*$")
# Sentences whose value, the group, stands in a fixed place.
_STATED = tuple(
    re.compile(form, re.IGNORECASE | re.DOTALL)
    for form in (
        r".{1,120}?[\s,;:]\$*[A-Za-z]\s?=\s?([^=]{1,80})",
        r"(?:the|an?) [^.;=]{3,160}?, ?(?:namely )?([^,.;0-9]{2,60}|\$?[(\[{\\].*)",
        r"(.{1,120}?) (?:satisf(?:y|ies)|solves?|works?|holds?|fits?)"
        r"(?: (?:it|(?:the|this|both) \w{1,16}))?",
        r"(.{1,40}) it is",
        r"\|[^|\n]+\|\s?([^|\n]+?)\s?\|?",
    )
)
_SAID = re.compile(r"(?is)\b(?:is|are|was|were)\b.*[0-9]")
_PARENTHESIS = re.compile(r"([^()]{1,120}?)\s?[(（]([^()]{1,80})[)）]")
_EQUALS = re.compile(r"=|\\approx(?![a-z])|≈|\\equiv(?![a-z])")
_HALF_PAIR = re.compile(r"\$$|^\$(?![0-9])")
# What has a name in geometry, in statistics or in words, with its index and its argument: an angle,
# a length, an arc, an area. Nothing is computed in it.
_LABEL = (
    r"(?:(?:\\(?:text|math(?:rm|bf|it|bb|cal)|operatorname)\s?\{[^{}=0-9]{1,40}\}"
    r"|\\(?:overline|over(?:right|leftright)?arrow|wide(?:hat|tilde)|vec|bar|hat"
    r"|(?:overset|stackrel)\s?\{\\(?:frown|arc)\})\s?\{[A-Za-z]{1,4}\}|\|[A-Za-z]{1,4}\|"
    r"|(?:(?:\\(?:m?angle|triangle|odot)(?![a-z])|[∠△⊙])\s?(?:[0-9]|[A-Za-z]{1,4}(?![A-Za-z])))"
    r"|[A-Za-z]{1,16}(?![A-Za-z]))(?:_\s?(?:\w|\{[^{}=]{1,20}\}))?(?:\s?\([^()=]{1,20}\))?'?)"
)
_NAME = re.compile(
    rf"\$?{_LABEL}(?:\s?{_LABEL}){{0,3}}|\\[a-z]+"
    r"|(?:[-−](?=[A-Za-z]\s?[-+*/^]))?[A-Za-z](?:\s?[-+*/^]\s?\(?[A-Za-z]\)?){0,6}"
)
_WORKING = re.compile(
    r"(?s)\\(?:int|det|lim|sum|binom)(?![a-z]).*|[A-Za-z\\]?[A-Za-z]{0,12}\([A-Za-z0-9.,\s]{1,12}\)"
    r"|(?:[0-9\s.,+\-*/()^{}!%$∴√|]|\\(?:times|cdot|[dt]?frac|sqrt|left|right|div|pi)(?![a-zA-Z])"
    r"|(?<=[0-9)])\s?x\s?(?=[0-9(]))+"
)
_BARE_NUMBER = re.compile(r"-?[0-9.,]+%?")
_PLACED = re.compile(
    r"(-?[$€£¥]?[0-9][0-9.,/ ]{0,20}(?: ?[^\s,;0-9]{1,20}){0,3}?)"
    r" (?:(?:in|to|for|on|at|from|among|when) ([^0-9]{1,80})|(?:are|is|were) (?:left"
    r"|remaining|needed))"
)
# GSM8K writes its calculations into the text: 20+15=<<20+15=35>>35
_CALCULATION = re.compile(r"<<[^<>\n]{0,80}>>")
# "The planets are:" and a line for each of them.
_HEADED = re.compile(
    r"([^\n:：]{1,100})[:：][ \t]{0,8}\n{1,3}"
    r"((?:[ \t]{0,3}(?:[-*•]|[0-9]{1,2}[.)])[ \t][^\n]{1,80}\n?){2,32})"
)
# With the first a number is a circumstance, with the second any value is a bound.
_ASIDE = frozenset({"to", "in", "at", "after", "by", "from", "for", "with"})
_BOUNDS = frozenset({"after", "by", "from"})
_SOURCES = frozenset({"table", "chart", "graph", "figure", "picture", "image", "row", "column"})
_SEVERAL = re.compile(r"[0-9]|,| and ")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_CHINESE_EMPTY = re.compile(rf"(?:{any_of('chinese_empty')}|[，,：:\s])+")
_CHINESE_VALUE = re.compile(
    r"(?s)(.{0,60}?)(-?[0-9][0-9.,]*(?:%|[年月][0-9年月日号]{1,8})?)([^0-9]{0,40})"
)
_CHINESE_NAME = re.compile(
    r"(?s)(.{2,60}?[是为])(?:[\u4e00-\u9fff]{0,4}(?:诗人|[学画作]家|音乐家|皇帝|总统|首都|城市))?(.{1,40})"
)


def hedges(claim: str, reference: str) -> bool:
    """Whether a claim leaves open which of several it gives; words of the reference do not."""
    known = reference.casefold()
    claim = _unhedged(claim)
    # "Not B or C, so A": what was open before the conclusion is not open behind it.
    claim = _CONCLUSION.split(claim)[-1] or claim
    return any(found.casefold() not in known for found in HEDGE.findall(claim))


def talks_to_grader(claim: str) -> bool:
    """Whether a claim asks for its score, or points at the reference, instead of answering."""
    # "The grader marks on a curve, so the mean is 75" is about a grader, and concludes a value.
    concluded = re.split(r";\s|,?\s(?:so|hence|thus|therefore),?\s", claim)[-1]
    return bool(_GRADER.search(concluded))


def _unhedged(claim: str) -> str:
    """ "Probably 8" claims 8: one such word in front of the value, and no other."""
    return _HEDGED.sub(r"\1", claim) if len(HEDGE.findall(claim)) == 1 else claim


def readings(claim: str, question: str = "") -> Iterator[Reading]:
    """Yield what a candidate may state, its own wording first."""
    claim = _unhedged(_CALCULATION.sub("", claim))
    yield (claim,)
    if len(claim) > MAX_CLAIM_CHARS:
        return
    if (headed := _HEADED.fullmatch(claim)) and not _CHANGES.search(headed[1]):
        yield (headed[2],)
    sentence, rivals = _sentence(claim)
    if _SUPPOSED.match(sentence):
        return
    asked = Question.of(question)
    seen: set[Reading] = {(claim,)}
    for clause in _clauses(sentence, asked):
        for reading in _values(clause, asked):
            if reading not in seen:
                seen.add(reading)
                yield reading + rivals


def _sentence(claim: str) -> tuple[str, Reading]:
    """The sentence that states the answer, and the bare values of others, which must agree."""
    first, *others = pieces = claim_sentences(claim) or [claim]
    if not others:
        return first, ()
    last, rest = others[-1], " ".join(others)
    is_bare = len(first.split()) <= 3 and not first.endswith(("?", ",", ":"))
    # A bare answer first, and remarks without a number behind it: the first is the answer.
    if is_bare and len(last.split()) > 1 and not _MORE.search(rest):
        return first, ()
    # One word or number, or "It is ...", could be the whole answer.
    bare = [piece for piece in pieces[:-1] if len(piece.split()) <= (6 if _subject(piece) else 1)]
    bare = [piece for piece in bare if not _NO_ANSWER.search(piece)]
    is_table = any(piece.startswith("|") for piece in pieces)
    is_working = len(bare) > 1 < len(last.split())
    # "The width is 4. The length is 10." speaks of two things, which do not contradict.
    is_of_several = len({_subject(piece) for piece in (*bare, last)} - {""}) > 1
    if is_table or is_working or is_of_several:
        return last, ()
    return last, tuple(_VERB.split(piece, 1)[-1] for piece in bare)


def _subject(sentence: str) -> str:
    match = _SUBJECT.match(sentence)
    return match[1].casefold() if match else ""


def _clauses(sentence: str, asked: Question) -> Iterator[str]:
    """The sentence, and what is left of it without openings, conclusions and remarks."""
    text = _REJECTED.sub(" ", sentence.strip().lstrip("= ")).strip()
    main = _main_clause(text)
    yield from (text, main)
    # Behind "so" and ";" stands what the rest was said for.
    parts = [part for part in _CONCLUSION.split(text) if part and part.strip()]
    ends = [main]
    if len(parts) > 1:
        ends.append(_main_clause(parts[-1]))
        yield ends[-1]
        if not re.search(r"\d", "".join(parts[1:])) and not re.match(r"(?:or|and|but)\b", parts[1]):
            # What follows is a remark.
            yield parts[0]
    for end in ends:
        clauses = _COORDINATED.split(end)
        if len(clauses) > 1:
            # Of clauses side by side the one with most words of the question speaks of what is
            # asked; none if that is open.
            said = [sum(stem in clause.casefold() for stem in {*asked.stems}) for clause in clauses]
            clauses = [clauses[said.index(max(said))]] if said.count(max(said)) == 1 else []
        for clause in clauses:
            yield clause
            # What is concluded from it is no remark.
            if not (end is main and len(ends) > 1 and re.search(r"\d", ends[1])):
                yield _REMARK.sub("", clause)


def _main_clause(text: str) -> str:
    for opening in (_OPENING, _SUBORDINATE, _OPENING):
        text = text[match.end() :] if (match := opening.match(text)) else text
    return text


def _values(clause: str, asked: Question) -> Iterator[Reading]:
    """What a clause may say its value is; itself at least."""
    text = re.sub(r"[.。]$|(?<=[a-z]{3})!$", "", clause.strip())
    if not text:
        return
    yield (text,)
    yield from _sides(text, asked)
    known = asked.text.casefold()
    words = [found.group().casefold().removesuffix("s") for found in _CHANGES.finditer(text)]
    changes = any(word not in known for word in words)
    if both := _PARENTHESIS.fullmatch(text):
        yield (both[1], both[2])
        if not changes and re.fullmatch(r"[a-z ]+", both[2]):
            yield (both[1],)
    # From here on parts of the clause are read, which such a word would make say the opposite.
    if changes or HEDGE.search(text) or text.endswith("?"):
        return
    for value in _spans(text, asked):
        if bare := re.sub(r"[.,;]$", "", value.strip()):
            yield (bare,)
            yield from _sides(bare, asked)


def _sides(text: str, asked: Question) -> Iterator[Reading]:
    """The values that an equation puts side by side; the last one alone behind working."""
    parts = [part.strip(" *") for part in _EQUALS.split(text)]
    # Half a pair of dollar signs belongs to no side; one before a digit is money.
    parts = [_HALF_PAIR.sub("", part, 1) if part.count("$") % 2 else part for part in parts]
    # "720 ways to arrange the books" names 720 ways.
    placed = _PLACED.fullmatch(parts[-1])
    if placed and not _CHANGES.search(parts[-1]) and asked.covers(placed[2] or ""):
        parts[-1] = placed[1]
    if parts != [text]:
        yield tuple(parts)
    if not 1 < len(parts) <= 6 or not all(parts):
        return
    # "Not x = 12" gives x no value.
    is_named = _NAME.fullmatch(parts[0]) and not _CHANGES.search(parts[0])
    if is_named or _WORKING.fullmatch(plain(parts[0])):
        # The working may stay undone on the way, but no other number may.
        others = (part for part in parts[:-1] if _BARE_NUMBER.fullmatch(part))
        yield (*others, parts[-1])
    # 3 = x
    if len(parts) == 2 and re.fullmatch(r"[A-Za-z]", parts[1]):
        yield (parts[0],)


def _spans(text: str, asked: Question) -> Iterator[str]:
    """The parts of a clause that may be its value."""
    for form in (_BOLD, _MATHS):
        found = list(form.finditer(text))
        # "The inverse of $A$" is not $A$.
        if len(found) == 1 and not _RELATED.search(text[: found[0].start()]):
            yield next(group for group in found[0].groups() if group)
    subject_end = 0
    for verb in islice(_VERB.finditer(text), MAX_VERBS):
        subject, word = text[: verb.start()], verb.group().strip().casefold()
        if subject_end and re.search(r"[,;]|\b(?:and|while)\b", subject[subject_end:]):
            # "The car is red and the house is blue" has no one value.
            break
        subject_end = verb.end()
        owned = _OWNED.search(subject)
        owner = (owned[1] or owned[2]) if owned else ""
        # "He died in Berlin" does not say where he was born, nor "the car's neighbour" what it is.
        is_known = word not in ("to", "in", "on", "at", "by") or asked.covers(subject)
        is_known &= asked.covers(owner) or owner.casefold() in _GENERIC
        if is_known and len(subject.split()) <= MAX_SUBJECT_WORDS:
            yield text[verb.end() :]
    if (first := _VALUE_FIRST.fullmatch(text)) and asked.covers(first[2] or ""):
        yield first[1] or first[3]
    for form in _STATED:
        match = form.fullmatch(text)
        # "The minimum is 2, at x = -5" has said its value before, and "\sin x = 1" none of x.
        before = text[: match.start(1)] if match else ""
        named = re.search(r"\$*[A-Za-z]\s?=\s?$", before)
        is_another = named and _OPERATOR.search(before[: named.start()])
        if match and not _SAID.search(before) and not is_another:
            yield match[1]
    yield from _of_asked_type(text, asked)
    yield _beside_question(text, asked)
    yield from _only_number(text, asked)


def _of_asked_type(text: str, asked: Question) -> Iterator[str]:
    """The one value of a clause that is of the kind asked for: a year, a day, what is counted."""
    for asks, value in _ASKED_TYPES:
        values = list(value.finditer(text)) if asks.search(asked.text) else []
        # What lies before or after it is another day.
        if len(values) == 1 and not _BOUND.search(text[: values[0].start()]):
            yield values[0].group()
    if counts := _COUNTS.fullmatch(text):
        things = re.split(r",? and |, ", counts[1])
        found = [thing for thing in things if stem_of(thing.split()[-1].casefold()) in asked.stems]
        yield from found if len(found) == 1 else ()


def _only_number(text: str, asked: Question) -> Iterator[str]:
    """The one number of a clause that the question does not have, with the words behind it."""
    numbers = list(_NUMBER.finditer(text))
    # A number of the question is repeated from it.
    if len(numbers) > 1:
        known = asked.numbers
        numbers = [one for one in numbers if re.sub(r"[^\d.]", "", one.group()) not in known]
    if len(numbers) != 1 or "=" in text:
        return
    before, behind = text[: numbers[0].start()], text[numbers[0].end() :]
    # "48 pages a day" is no number of pages.
    if _NOT_ALONE.search(before) or _OPERATOR.search(before) or _GOES_ON.match(behind):
        return
    number, words = numbers[0].group().strip(), _BEHIND.match(behind)
    yield number + (words.group() if words else "")
    if words and words[1] and words[1] not in (" left", " remaining"):
        yield number + words.group().removesuffix(words[1])


def _beside_question(clause: str, asked: Question) -> str:
    """What remains of a clause without the words of the question around it; nothing if in doubt.

    Example: left, of "The arrow points to the left." to "Where does the arrow point?"
    Around a name the words have to come in the order of the question: "Rome beat Naples" is no
    answer to "Who beat Rome?". Numbers and lists are told from them by what they are.
    """
    if _CHINESE.search(clause):
        return _beside_chinese(clause, asked)
    words = clause.split()
    start, end = 0, len(words)
    # Take the question's words off at both ends; what is left is what the clause adds.
    while start < end and asked.echoes(words[start]):
        start += 1
    while start < end and asked.echoes(words[end - 1]):
        counted = words[start : end - 1]
        if counted and counted[-1][-1].isdigit() and not asked.echoes(counted[-1]):
            # The last word is what the number before it counts.
            break
        end -= 1
    value = " ".join(words[start:end]).strip(" ,:—")
    before, after = words[:start], words[end:]
    # "log 7" is not 7, though the question has a logarithm too.
    if value[:1].isdigit() and _OPERATOR.search(" ".join(before)):
        return ""
    if not value or not asked.stems:
        return value
    last, following = (word[0].casefold() if word else "" for word in (before[-1:], after[:1]))
    is_number, is_several = value[:1].isdigit(), _SEVERAL.search(value)
    doubts = (
        # "In 3 hours" is no time that something takes, "48 pages a day" no number of pages.
        is_several and last in (_ASIDE if is_number else _BOUNDS),
        following in ("a", "an", "per", "each", "every"),
        last == "after" and "after" not in asked.text.casefold(),
        "and" in (last, following),
        # "Table tennis" is one thing.
        not is_number and (last in _SOURCES or last.endswith(",")),
    )
    # The order of the words tells who beat whom.
    is_told = last == "by" or is_several or (asked.in_order(before) and asked.in_order(after))
    return value if is_told and not any(doubts) else ""


def _beside_chinese(clause: str, asked: Question) -> str:
    """The same of Chinese, which does not part its words: around the value the question's own."""
    if match := _CHINESE_VALUE.fullmatch(clause):
        before, value, after = match.groups()
        # "120米" is not 120 to a question of 千米.
        size = next((size for size in range(4, 0, -1) if read_unit(after[:size])), 0)
        around = (_CHINESE_EMPTY.sub("", part) for part in (before, after[size:]))
        question = _CHINESE_EMPTY.sub("", asked.text)
        return value + after[:size] if all(part in question for part in around) else ""
    match = _CHINESE_NAME.fullmatch(clause)
    return match[2] if match and match[1] in asked.text else ""
