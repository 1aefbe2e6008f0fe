"""What a candidate may say its value is, in the words around it.

A sentence states what stands beside the words of the question ("The capital of France is Paris"),
behind its verb, behind its last "=", alone in bold or as mathematics, or as its only number. A
clause with a word that denies, compares or supposes states nothing but itself, unless the question
has that word too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rewards.rules.reading.candidates import claim_sentences
from rewards.rules.reading.notation import plain
from rewards.rules.reading.question import Question, stem_of
from rewards.rules.reading.units import read_unit
from rewards.rules.reading.wording import any_of, words

MAX_CLAIM_CHARS = 400
"""A longer candidate is only read as it stands."""
MAX_SUBJECT_WORDS = 16
MAX_VERBS = 4

Reading = tuple[str, ...]
"""Values that all have to be right: "1/2 = 0.5" and "twelve (12)" state two."""

HEDGE = re.compile(any_of("hedges"), re.IGNORECASE)
_HEDGED = re.compile(
    r"^((?:(?:i think |so |the answer is )*"
    r"(?:it|that|this|[a-z]|the [a-z ]{1,40}) (?:is|was|=)\s)?)"
    r"(?:most |very )?(?:probably|likely|perhaps|maybe|possibly),?\s(?!not\b)",
    re.IGNORECASE,
)
_CHANGES = re.compile(any_of("changes") + r"|n['’]t\b", re.IGNORECASE)
_GRADER = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:reference|instructions?|rubric|rules)\b"
    r"|\b(?:mark|grade|score|rate|treat|accept|consider)\b (?:this|it|me|my)\b[^.\n]{0,30}"
    r"\b(?:correct|right|full|true|1\.0)\b"
    r"|\b(?:grader|verifier|evaluator)\b|\b(?:full (?:marks|credit|score)|answer key"
    r"|ground truth)\b"
    r"|忽略[^。\n]{0,20}(?:参考|标准|指令|规则)|满分|阅卷|评分",
    re.IGNORECASE,
)
_OPENING = re.compile(
    rf"(?:(?:{any_of('openings')}|yes(?=\s?,))\s?[,:：]?\s?|∴\s?|{any_of('chinese_openings')}\s?[,，:：]?\s?"
    rf"|(?:[a-z]{{3,12}}ing\b[^.;\n]{{0,40}}?)?\b(?:we|i|you) (?:can |would "
    rf"|will )?{any_of('findings')}"
    r"(?: that)?\s?:?\s?|(?:this|which|it|that|\w+ing) (?:gives|yields|means|makes)(?: that)?\s?"
    r"|(?:可得|(?:我们)?得[到出]?|(?:本题)?(?:应该?|我)?选择?|我认为是?|解得)\s?[:：]?\s?)+",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"(?:if|unless|suppose|assume|in case)\b(?! (?:we|you|i)\b)|如果|假设|假如|若", re.IGNORECASE
)
# In front of the main clause: "After giving away 9, ..." but not "If ...".
_SUBORDINATE = re.compile(any_of("subordinate") + r"[^,=]{1,80}, ?(?=\S)", re.IGNORECASE)
_VERB = re.compile(
    r"(?<=\s)(?:(?:is|was|are|were) (?:called|named|made (?:up )?of|composed of|equal to|known as"
    r"|[a-z]{3,12}(?:ed|en|wn|nt|de|ng) by|(?:located|found) (?:in|at)|in|on|by|at)"
    rf"|(?:has|have) an? [a-z]{{1,12}} of|{any_of('verbs')})"
    r"\s?(?:just|only|exactly|about to be|:|therefore|thus|then|simply)?\s{0,3}"
    r"|^(?:it|that|this|there|he|she|they)(?:'s|'re)\s+"
    r"|(?:还?剩下?|[一总]?共有?|等于|应?[为是]|约为|就是|有|需要?|花了?|[走跑骑飞用买卖]了?|全[程长]|在|叫做?|得)\s?",
    re.IGNORECASE,
)
_PLACES = frozenset({"to", "in", "on", "at", "by"})
_VALUE_FIRST = re.compile(
    r"(.{1,80}?) (?:is|was|are|were) (?:the|a|an|correct|right|my)\b(.{0,120})"
    r"|(.{1,40}?)(?:是|为)(?:正确的|对的|.{1,40}的.{1,20})",
    re.IGNORECASE,
)
_OWNED = re.compile(r"['’]s (\w+)\s*$|^(?:so )?the (\w+) of\b", re.IGNORECASE)
_GENERIC = frozenset(words("generic"))
_REJECTED = re.compile(
    r"\s?[,;(（，]\s?(?:(?:and |but )?not|rather than|instead of|unlike|而不是"
    r"|不是)\b[^,;]{1,60}[)）]?$|\s(?:rather than|instead of)\s[^,;]{1,60}$"
    # "Not 7 but 8", which is no "not only".
    r"|(?:n['’]t|\s?\bnot)\s(?!only|just|merely|simply)[^.,;]{1,40},?\sbut\s(?!also\b|not\b)",
    re.IGNORECASE,
)
_REMARK = re.compile(
    rf"\s?[,;，；]\s?{any_of('remarks')}.*$|\s(?:because|since|due to|as (?:an?|the|we|it"
    rf"|required)\b).*$"
    r"|\s(?:in|around|about|circa|during|since) (?:the )?(?:year |early |late )?[12]\d{3}s?\.?$"
    r"|(?:因为|由于).*$|\s?\((?:for|since|because|as|where|when|with)\b[^()]{0,80}\)$",
    re.IGNORECASE | re.DOTALL,
)
_CONCLUSION = re.compile(
    rf"\s?(?:[,;，；—–]|\s-\s)\s?(?:{any_of('conclusions')}|(?:leav|giv|yield|produc|mak)ing(?!\s\w+ing)|i\.e\.|所以|因此|故|则|即)\s?[,，:：]?\s?"
    r"|\s?[;；—–]\s?|\s(?:so|hence|thus|therefore|i\.e\.),?\s|[:：]\s"
    r"|[,，]\s?(?=(?:we (?:get|have|find|obtain)|the (?:answer|total|change|result|final"
    r"|winner|host) ))",
    re.IGNORECASE,
)
_COORDINATED = re.compile(
    r",?\s(?:and|while|whereas|but)\s(?=(?:the |he |she |it |they |their |its |his |her "
    r"|(?:an? )?\w+ (?:is|was|are|were|has"
    r"|had|died|lost|won)\b))"
    r"|,\s(?=[A-Z]\w* (?:is|was|lost|won|has)\b)"
)
_NUMBER = re.compile(
    r"(?:(?:US|HK)?[$€£¥]\s?)?[-+]?(?:\\[dt]?frac\s?\{[^{}]{1,20}\}\{[^{}]{1,20}\}"
    r"|(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+|\s\d+/\d+)?"
    r"(?:\s?(?:\\times|×|x|\*)\s?10\s?\^\s?\{?-?\d+\}?)?)"
    r"(?:\s?(?:%|percent\b|(?:hundred|thousand|million|billion|trillion)\b|万亿|[万亿]))?"
)
_NOT_ALONE = re.compile(
    r"(?:[\w^_{\\([]|[<>|*/+-]\s?|\b(?:before|after|since|than|over|under|about|around|to|from|in|by|and)\s?)$",
    re.I,
)
_BEHIND = re.compile(r"\s?[A-Za-z°%][^\s,;()]{0,20}(\s(?:per )?[a-z]{2,16})?")
_ASKED_TYPES = tuple(
    (re.compile(asks, re.IGNORECASE), re.compile(value, re.IGNORECASE))
    for asks, value in (
        (r"\b(?:which|what) year\b", r"(?<![\d.,$])[12]\d{3}(?![\d.,]?\d|\w| ?(?:bc|b\.c|ad\b))"),
        (
            r"\b(?:which|what) (?:week)?day\b",
            r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
        ),
        (
            r"\b(?:which|what) month\b",
            r"\b(?:january|february|march|april|may|june|july|august|(?:sept|nov|dec)ember"
            r"|october)\b",
        ),
        (
            r"\bby (?:what|which|how (?:much|many))\b",
            r"(?<=\bby )[$€£]?\d[\d.,]*\d?(?:\s?%|\spercent\b)?(?= last|[.]?$)",
        ),
    )
)
_BOUND = re.compile(
    r"\b(?:before|after|since|until|till|than|from|to|of|over|under|past|between|through)\s"
    r"(?:the |an? )?$",
    re.IGNORECASE,
)
# "It has 1 seat, 2 pedals and 3 wheels."
_COUNTS = re.compile(
    r"[^\d,]{0,80}?\b(\d[\d,]*\d? [a-z]{2,20}(?:(?:, |,? and )\d+ [a-z]{2,20}){1,6})"
    r"(?: (?:is|are|was|were) [a-z]{2,12})?",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_MATHS = re.compile(r"\$\$?([^$\n]{1,200})\$\$?|\\\(([^\n]{1,200}?)\\\)|\\\[(.{1,200}?)\\\]")
_RELATED = re.compile(
    r"\b(?:of|for|from|above|below|over|under|near|before|after|exceeds|since|satisf\w+)\s*$", re.I
)
_ASSIGNED = re.compile(r"(.{1,120}?[\s,;:])\$*[A-Za-z]\s?=\s?([^=]{1,80})", re.DOTALL)
_SAID = re.compile(r"\b(?:is|are|was|were)\b.*[0-9]", re.IGNORECASE | re.DOTALL)
_APPOSED = re.compile(
    r"(?:the|an?) [^.;=]{3,160}?, ?(?:namely )?([^,.;0-9]{2,60}|\$?[(\[{\\].*)", re.IGNORECASE
)
_BEFORE_VERB = re.compile(
    r"(.{1,120}?) (?:satisf(?:y|ies)|solves?|works?|holds?|fits?)(?: (?:it|(?:the|this"
    r"|both) \w{1,16}))?"
    r"|(.{1,40}) it is",
    re.IGNORECASE | re.DOTALL,
)
_PARENTHESIS = re.compile(r"([^()]{1,120}?)\s?[(（]([^()]{1,80})[)）]")
_EQUALS = re.compile(r"=|\\approx(?![a-z])|≈|\\equiv(?![a-z])")
_NAME = re.compile(
    r"\$?(?:[A-Za-z]{1,16} ?){1,3}(?:\([^()]{1,8}\))?|\\[a-z]+"
    r"|(?:[-−](?=[A-Za-z]\s?[-+*/^]))?[A-Za-z](?:\s?[-+*/^]\s?\(?[A-Za-z]\)?){0,6}"
)
_WORKING = re.compile(
    r"\\(?:int|det|lim|sum|binom)(?![a-z]).*|[A-Za-z\\]?[A-Za-z]{0,12}\([A-Za-z0-9.,\s]{1,12}\)"
    r"|(?:[0-9\s.,+\-*/()^{}!%$∴√|]|\\(?:times|cdot|[dt]?frac|sqrt|left|right|div|pi)(?![a-zA-Z])"
    r"|(?<=[0-9)])\s?x\s?(?=[0-9(]))+",
    re.DOTALL,
)
_BARE_NUMBER = re.compile(r"-?[0-9.,]+%?")
_PLACED = re.compile(
    r"(-?[$€£¥]?[0-9][0-9.,/ ]{0,20}(?: ?[^\s,;0-9]{1,20}){0,3}?)"
    r" (?:(?:in|to|for|on|at|from|among|when) ([^0-9]{1,80})|(?:are|is|were) (?:left"
    r"|remaining|needed))"
)
# GSM8K writes its calculations into the text: 20+15=<<20+15=35>>35
_CALCULATION = re.compile(r"<<[^<>\n]{0,80}>>")
_TABLE_ROW = re.compile(r"\|[^|\n]+\|\s?([^|\n]+?)\s?\|?")
# "The planets are:" and a line for each of them.
_HEADED = re.compile(
    r"([^\n:：]{1,100})[:：][ \t]{0,8}\n{1,3}"
    r"((?:[ \t]{0,3}(?:[-*•]|[0-9]{1,2}[.)])[ \t][^\n]{1,80}\n?){2,32})"
)
# With the first a number is a circumstance, with the second any value is a bound.
_ASIDE = frozenset({"to", "in", "at", "after", "by", "from", "for", "with"})
_BOUNDS = frozenset({"after", "by", "from"})
_SOURCES = frozenset({"table", "chart", "graph", "figure", "picture", "image", "row", "column"})
_RATES = frozenset({"a", "an", "per", "each", "every"})
_SEVERAL = re.compile(r"[0-9]|,| and ")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
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
    """Yield what a candidate may state, its own wording first.

    Example: ("Paris",) in readings("So the capital is Paris.")
    """
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
    pieces = claim_sentences(claim) or [claim]
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return first, ()
    rest = " ".join(pieces[1:])
    is_bare = (
        len(first.split()) <= 3 and not first.endswith(("?", ",", ":")) and len(last.split()) > 1
    )
    # A bare answer first, and remarks without a number behind it: the first is the answer.
    if is_bare and not re.search(r"\d", rest) and not _CHANGES.search(rest):
        return first, ()
    bare = [piece for piece in pieces[:-1] if _is_bare(piece)]
    if any(piece.startswith("|") for piece in pieces) or len(bare) > 1 < len(last.split()):
        # The lines of a table, or of a calculation.
        return last, ()
    # "The width is 4. The length is 10." speaks of two things, which do not contradict.
    subjects = {_subject(piece) for piece in (*bare, last)} - {""}
    verbs = [_VERB.search(piece) for piece in bare]
    values = [
        piece[verb.end() :] if verb else piece for piece, verb in zip(bare, verbs, strict=True)
    ]
    return last, () if len(subjects) > 1 else tuple(values)


def _is_bare(sentence: str) -> bool:
    """Whether a sentence could be the whole answer: one word or number, or "It is ..."."""
    words = sentence.strip(" .!").split()
    is_reply = words[:1] in (["No"], ["Yes"], ["yes"], ["no"])
    is_short = len(words) == 1 and not (_CHINESE.search(sentence) and len(sentence) > 8)
    is_short |= len(words) <= 6 and _subject(sentence) != ""
    return (
        is_short and not is_reply and not sentence.endswith(("?", ",", ":")) and "=" not in sentence
    )


def _subject(sentence: str) -> str:
    match = re.match(
        r"(?:(?:so|thus|hence|therefore),? )?(it|that|this|the \w{1,20}) (?:is|was) ",
        sentence,
        re.IGNORECASE,
    )
    return match[1].casefold() if match else ""


def _clauses(sentence: str, asked: Question) -> Iterator[str]:
    """The sentence, and what is left of it without openings, conclusions and remarks."""
    text = _REJECTED.sub(" ", sentence.strip().lstrip("= ")).strip()
    yield text
    main = _main_clause(text)
    yield main
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
        for clause in _relevant(_COORDINATED.split(end), asked):
            yield clause
            shortened = _REMARK.sub("", clause)
            # What is concluded from it is no remark.
            is_concluded = end is main and len(ends) > 1 and re.search(r"\d", ends[1])
            if shortened.strip() and shortened != clause and not is_concluded:
                yield shortened


def _main_clause(text: str) -> str:
    for opening in (_OPENING, _SUBORDINATE, _OPENING):
        text = text[match.end() :] if (match := opening.match(text)) else text
    return text


def _relevant(clauses: Sequence[str], asked: Question) -> Sequence[str]:
    """Of clauses side by side the one that speaks of what is asked; none if that is open."""
    if len(clauses) < 2:
        return clauses
    # The clause with most words of the question speaks of what is asked.
    said = [sum(stem in clause.casefold() for stem in set(asked.stems)) for clause in clauses]
    best = [clause for clause, count in zip(clauses, said, strict=True) if count == max(said)]
    return best if len(best) == 1 else []


def _values(clause: str, asked: Question) -> Iterator[Reading]:
    """What a clause may say its value is; itself at least."""
    text = re.sub(r"[.。]$|(?<= [0-9]{2})!$", "", clause.strip())
    yield (text,)
    yield from _sides(text, asked)
    known = asked.text.casefold()
    changes = [
        found.group()
        for found in _CHANGES.finditer(text)
        if found.group().casefold().removesuffix("s") not in known
    ]
    if both := _PARENTHESIS.fullmatch(text):
        yield (both[1], both[2])
        if not changes and re.fullmatch(r"[a-z ]+", both[2]):
            yield (both[1],)
    # From here on parts of the clause are read, which such a word would make say the opposite.
    if changes or HEDGE.search(text) or text.endswith("?"):
        return
    for value in _spans(text, asked):
        bare = re.sub(r"[.,;]$", "", value.strip()) if value else ""
        if bare:
            yield (bare,)
            yield from _sides(bare, asked)


def _sides(text: str, asked: Question) -> Iterator[Reading]:
    """The values that an equation puts side by side; the last one alone behind working."""
    parts = [_side(part) for part in _EQUALS.split(text)]
    # "720 ways to arrange the books" names 720 ways.
    placed = _PLACED.fullmatch(parts[-1])
    if placed and not _CHANGES.search(parts[-1]) and asked.covers(placed[2] or ""):
        parts[-1] = placed[1]
    if not 1 < len(parts) <= 6 or not all(parts):
        if parts != [text]:
            yield tuple(parts)
        return
    yield tuple(parts)
    if _NAME.fullmatch(parts[0]) or _WORKING.fullmatch(plain(parts[0])):
        # The working may stay undone on the way, but no other number may.
        others = (part for part in parts[:-1] if _BARE_NUMBER.fullmatch(part))
        yield (*others, parts[-1])
    # 3 = x
    if len(parts) == 2 and re.fullmatch(r"[A-Za-z]", parts[1]):
        yield (parts[0],)


def _side(text: str) -> str:
    """A side of an equation, without half a pair of dollar signs; one before a digit is money."""
    text = text.strip(" *")
    if text.count("$") % 2 == 0:
        return text
    return text[:-1] if text.endswith("$") else re.sub(r"^\$(?![0-9])", "", text)


def _spans(text: str, asked: Question) -> Iterator[str]:
    """The parts of a clause that may be its value."""
    for form in (_BOLD, _MATHS):
        found = list(form.finditer(text))
        # "The inverse of $A$" is not $A$.
        if len(found) == 1 and not _RELATED.search(text[: found[0].start()]):
            yield next(group for group in found[0].groups() if group)
    subject_end = 0
    for verb in list(_VERB.finditer(text))[:MAX_VERBS]:
        subject, word = text[: verb.start()], verb.group().strip().casefold()
        if subject_end and re.search(r"[,;]|\b(?:and|while)\b", text[subject_end : verb.start()]):
            # "The car is red and the house is blue" has no one value.
            break
        subject_end = verb.end()
        owned = _OWNED.search(subject)
        owner = (owned[1] or owned[2]) if owned else ""
        # "He died in Berlin" does not say where he was born, nor "the car's neighbour" what it is.
        is_known = word not in _PLACES or asked.covers(subject)
        is_known &= asked.covers(owner) or owner.casefold() in _GENERIC
        if is_known and len(subject.split()) <= MAX_SUBJECT_WORDS:
            yield text[verb.end() :]
    if (first := _VALUE_FIRST.fullmatch(text)) and asked.covers(first[2] or ""):
        yield first[1] or first[3]
    for form in (_ASSIGNED, _APPOSED, _BEFORE_VERB, _TABLE_ROW):
        match = form.fullmatch(text)
        # "The minimum is 2, at x = -5" has said its value before.
        if match and not (form is _ASSIGNED and _SAID.search(match[1])):
            yield next(group for group in reversed(match.groups()) if group)
    yield from _of_asked_type(text, asked)
    yield _beside_question(text, asked)
    yield from _only_number(text, asked)


def _of_asked_type(text: str, asked: Question) -> Iterator[str]:
    """The one value of a clause that is of the kind asked for: a year, a weekday, what is counted.

    Example: 3 wheels, of "It has 2 pedals and 3 wheels." to "How many wheels does it have?"
    """
    for asks, value in _ASKED_TYPES:
        values = list(value.finditer(text)) if asks.search(asked.text) else []
        # What lies before or after it is another day.
        if len(values) == 1 and not _BOUND.search(text[: values[0].start()]):
            yield values[0].group()
    if counts := _COUNTS.fullmatch(text):
        found = [
            item
            for item in re.split(r",? and |, ", counts[1])
            if stem_of(item.split()[-1].casefold()) in asked.stems
        ]
        if len(found) == 1:
            yield found[0]


def _only_number(text: str, asked: Question) -> Iterator[str]:
    """The one number of a clause that the question does not have, with the words behind it."""
    numbers = list(_NUMBER.finditer(text))
    # A number of the question is repeated from it.
    if len(numbers) > 1:
        numbers = [
            one for one in numbers if re.sub(r"[^\d.]", "", one.group()) not in asked.numbers
        ]
    if len(numbers) != 1 or "=" in text:
        return
    before, behind = text[: numbers[0].start()], text[numbers[0].end() :]
    if _NOT_ALONE.search(before) or re.match(r"\s?[\^_}\\(*/+<>=|-]|\w", behind):
        return
    if re.match(r"\s?[^\s.,;]{1,20} (?:an?|per|each|every)\s", behind):
        # "48 pages a day" is no number of pages.
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
    if not value or not asked.stems:
        return value
    last, following = (word[0].casefold() if word else "" for word in (before[-1:], after[:1]))
    is_number = value[:1].isdigit()
    # "In 3 hours" is no time that something takes, "48 pages a day" no number of pages.
    is_aside = (last in (_ASIDE if is_number else _BOUNDS) and _SEVERAL.search(value)) or (
        last == "after" and "after" not in asked.text.casefold()
    )
    is_joined = "and" in (last, following) or (last.endswith(",") and not is_number)
    # "Table tennis" is one thing.
    is_compound = last in _SOURCES and not is_number
    if is_aside or is_joined or is_compound or following in _RATES:
        return ""
    # The order of the words tells who beat whom.
    in_order = asked.in_order(before) and asked.in_order(after)
    return value if last == "by" or in_order or _SEVERAL.search(value) else ""


def _beside_chinese(clause: str, asked: Question) -> str:
    """The same of Chinese, which does not part its words: around the value the question's own."""
    if match := _CHINESE_VALUE.fullmatch(clause):
        before, value, after = match.groups()
        # "120米" is not 120 to a question of 千米.
        size = next((size for size in range(4, 0, -1) if read_unit(after[:size])), 0)
        value, after = value + after[:size], after[size:]
        around = (_CHINESE_EMPTY.sub("", part) for part in (before, after))
        return value if all(part in _CHINESE_EMPTY.sub("", asked.text) for part in around) else ""
    match = _CHINESE_NAME.fullmatch(clause)
    return match[2] if match and match[1] in asked.text else ""
