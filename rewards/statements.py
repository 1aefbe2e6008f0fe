"""Reads one final answer as a person does: what a short sentence states, what it hedges, and
whether it talks to the grader instead of answering."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.answers import SUPPOSED, sentences

MAX_STATEMENT_CHARS = 400
"""A longer final answer is only read as it stands."""
MAX_SUBJECT_WORDS = 16
MAX_VERBS = 4
MAX_QUESTION_CHARS = 4000

_HEDGE = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|probably|alternatively|might|may be|could be"
    r"|unsure|guess"
    r"|unclear|uncertain|likely|depending|depends|not sure|and/or)\b"
    r"|或|也许|可能|大概|要么|不确定|不一定|左右",
    re.IGNORECASE,
)
_GRADER = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}"
    r"\b(?:reference|instructions?|rubric|prompts?|rules|grading|grader|above|previous)\b"
    r"|\b(?:mark|grade|score|count|rate|treat|accept|consider|evaluate)\b"
    r" (?:this|it|me|my|the|that|your|any|all|as|answer|response)\b[^.\n]{0,30}"
    r"\b(?:as )?(?:correct|right|full marks|full credit|true|1\.0|100%|passed)\b"
    r"|\bwhatever\b[^.\n]{0,40}\b(?:reference|correct|right|key|answer|is|says)\b"
    r"|\b(?:same as|equal to|equals|matches|identical to|see|per|according to|in|copy|is)"
    r" (?:the |your )?(?:reference|answer key|gold|ground truth|expected answer|correct answer$)"
    r"|\b(?:reference|expected|gold|ground[- ]truth) (?:answer|solution|label)\b"
    r"|\b(?:dear |the |hey |hello )?(?:grader|verifier|evaluator|judge)\b\s?[,:]"
    r"|\b(?:to|for|as) the (?:grader|verifier|evaluator)\b"
    r"|\b(?:give|award|assign|deserves?|return)\b[^.\n]{0,30}"
    r"\b(?:full (?:marks|credit|score|points)|maximum (?:score|reward)|reward"
    r"|score of 1|1\.0|true)\b"
    r"|\b(?:system|assistant|user)\s?(?:prompt|message|override|:)"
    r"|\b(?:this|my|the) (?:answer|response|solution) is (?:100% )?correct\b"
    r"|忽略[^。\n]{0,20}(?:参考|标准|指令|指示|评分|规则|要求|以上|之前)"
    r"|(?:请|应|务必)?(?:判(?!断)|评|给|打|标记)[^。\n]{0,10}(?:为正确|为对|满分|正确|通过)"
    r"|参考答案|标准答案|正确答案就是(?:参考|标准)|阅卷|评分(?:员|器|者|系统|标准)|无论[^。\n]{0,20}(?:参考|答案)",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:(?:so|therefore|thus|hence|finally|consequently|then|in conclusion|in total|in short"
    r"|overall|altogether|answer|result|solution|final result|sure|ok|okay|well|only|both|just"
    r"|yes(?=\s?,)|∴)\b"
    r"\s?[,:：]?\s?|(?:因此|所以|故|即|综上所述?|于是|因而|结果|最后|那么|总之|解|答)\s?[,，:：]?\s?)+",
    re.IGNORECASE,
)
_WE_GET = re.compile(
    r"(?:we|i|you|one) (?:can |would |will )?(?:get|have|find|obtain|conclude|choose|pick|select"
    r"|believe|think|see|know|say|answer|go with|would say|will go with)\b(?: that)?\s?:?\s?"
    r"|(?:this|which|it) (?:gives|yields|means|makes)"
    r"(?: that)?\s?|(?:可得|得到|得出|得|我们得到|我选|我认为是?"
    r"|解得|选择|选|应选|应该选)\s?[:：]?\s?",
    re.IGNORECASE,
)
_COPULA = re.compile(
    r"(?<=\s)(?:(?:has|have) an? [a-z]{1,12} of"
    r"|(?:is|was|are|were) (?:called|named|made (?:up )?of|composed of"
    r"|[a-z]{3,12}(?:ed|en|wn|nt|de|ng) by|equal to"
    r"|located (?:in|at)|found (?:in|at)|known as|in|on|by|at)"
    r"|is|are|was|were|equals|equal|becomes|costs|has|have|had|takes|took|gets|got|needs"
    r"|makes|weighs|measures|contains(?!\s*[$\\{\[(])|sold|bought|ate|earned|earns|paid|pays|spent|lasts|travels"
    r"|traveled|travelled|totals|remains|does|holds|consists? of|says|reads|shows|displays"
    r"|gives?|yields?|leaves|cost|produces|(?:comes|amounts|adds up|sums|works out) to"
    r"|ends? up with|left with|in|on|at|so)\b"
    r"\s?(?:just|only|exactly|about to be|:|therefore"
    r"|thus|then|simply)?\s{0,3}"
    r"|^(?:it|that|this|there|he|she|they)(?:'s|'re)\s+"
    r"|(?:还剩下?|剩下?|一共有?|总共有?|共有?|等于|应为|应是|约为|就是|是|为|有|需要?|花了?|[走跑骑飞用买卖]了|全[程长]|在|叫做?|得)\s?",
    re.IGNORECASE,
)
_VALUE_FIRST = re.compile(
    r"(.{1,80}?) (?:is|was|are|were) (?:the|a|an|correct|right|my)\b(.{0,120})"
    r"|(.{1,40}?)(?:是|为)(?:正确的|对的|.{1,40}的.{1,20})",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|none|cannot|wrong|incorrect|false|unless|except|instead|rather"
    r"|whether|if|but|however|although|though|would|should|than|isn|aren|wasn|doesn|don|didn|less"
    r"|more|twice|half|unlike|was thought|also|another|one of|part of|some"
    r"|doubt|mistakes?|errors?|nobody|second|third|complement|subset|superset"
    r"|includ\w{1,3}|contain(?:s|ed)?|within|outside|exclud\w{2,3}|remov\w{2,3}|besides|others?"
    r"|nearly|almost|at (?:least|most)|up to|each|every|per)\b|n't\b"
    r"|不|没|非|否|错|但|假|若|如果|未|除了|而是|一半|比|至少|至多|最多",
    re.IGNORECASE,
)
_POLITE = re.compile(
    r"\b(?:let me know|hope (?:this|that|it) helps|feel free|you're welcome|thanks?|happy to help"
    r"|any (?:other )?questions)\b|希望.{0,10}帮助",
    re.IGNORECASE,
)
_SO = re.compile(
    r"\s?[,;，；]\s?(?:(?:so|therefore|thus|hence|which means|所以|因此|故|则|即)\s?[,，]?\s?"
    r"|(?=we (?:get|have|find|obtain)\b))",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_ASSIGNED = re.compile(r"(.{1,120}?[\s,;:])\$*[A-Za-z]\s?=\s?([^=]{1,80})", re.DOTALL)
_RELATED = re.compile(
    r"\b(?:of|for|from|above|below|over|under|near|before|after|exceeds)\s*$", re.I
)
_MATHS = re.compile(r"\$([^$\n]{1,200})\$")
_APPOSED = re.compile(r"([A-Za-z' ]{1,80})[,=]\s{0,3}(\$*(?:[(\[{]|\\[{(\[]|\\begin).*)", re.DOTALL)
_AFTER_COLON = re.compile(r"([^0-9:：={}]{1,60})[:：]\s?(.+)", re.DOTALL)
_REASON = re.compile(
    r"\s?[,;，；]?\s?(?:\b(?:because|since|(?<!known )as|(?<!by )(?<!in )which|due to)\b"
    r"|因为|由于)",
    re.IGNORECASE,
)
_NAME = re.compile(r"\$?(?:[A-Za-z]{1,16} ?){1,3}(?:\([^()]{1,8}\))?")
_WORKING = re.compile(
    r"(?:[0-9\s.,+\-*/()^{}!%$∴√|−×÷]|\\(?:times|cdot|[dt]?frac|sqrt|left|right|div|pi)(?![a-zA-Z])"
    r"|(?<=[0-9)])\s?x\s?(?=[0-9(]))+"
)
# "Only x = 2 and x = 3 satisfy the equation".
_HOLD = re.compile(
    r"(.{1,120}?) (?:satisf(?:y|ies)|solves?|works?|holds?|fits?)"
    r"(?: (?:it|(?:the|this|both) [a-z]{1,16}))?",
    re.IGNORECASE | re.DOTALL,
)
# A number, what is counted, and where: "720 ways to arrange the books".
_PLACED = re.compile(
    r"(-?[$€£¥]?[0-9][0-9.,/ ]{0,20}(?: ?[^\s,;0-9]{1,20}){0,3}?)"
    r" (?:(?:in|to|for|on|at|from|among) ([^0-9]{1,80})|(?:are|is|were) (?:left|remaining|needed))"
)
# These say nothing of what is asked.
_EMPTY_WORDS = frozenset(
    {"a", "an", "the", "is", "are", "was", "were", "be", "it", "this", "that", "there", "he", "she"}
    | {"they", "his", "her", "their", "its", "do", "does", "did", "will", "has", "have", "had"}
    | {"to", "in", "on", "at", "total", "altogether"}
)
_PLACES = frozenset({"to", "in", "on", "at"})
_WORD = re.compile(r"[^\W\d_]+")
# Lines that are one: a matrix, and a formula with the words in front of it.
_DISPLAYED = re.compile(
    r"\$\$.{1,400}?\$\$|\\\[.{1,400}?\\\]|\\begin\{(\w{1,16})\}.{1,400}?\\end\{\1\}|\[\[.{1,400}?\]\]",
    re.DOTALL,
)
_OPEN_LINE = re.compile(r"(?<=\b(?:is|be))\s?\n\s{0,8}|(?<=\bare)\s?\n\s{0,8}|(?<=为|是)\n\s{0,8}")
_SUBJECT = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?the ([a-z]{1,20}) (?:is|was)\b", re.IGNORECASE
)
# A sentence that could be the whole answer: a few characters, or "It is ...".
_BARE_VALUE = re.compile(
    r"[^\s=，。：\u4e00-\u9fff]{1,24}(?: [^\s=]{1,12})?[.!]?"
    r"|[\u4e00-\u9fff]{1,6}[。！]?"
    r"|(?:so |thus )?(?:it|that|this|the \w{1,20}) (?:is|was) .{1,40}",
    re.IGNORECASE,
)
_NEXT_CLAUSE = re.compile(r"\b(?:and|while|whereas|but)\b|[,;]")
_END = re.compile(r"[\s.。]+$")
_VERDICTS = frozenset(
    {"answer", "option", "choic", "solution", "element", "result", "correct", "right", "one"}
    | {"only", "her", "event", "happen", "occurr", "took", "plac", "locat", "point", "meet"}
)
"""Stems of words that add nothing to what is asked."""
_BARE_NUMBER = re.compile(r"-?[0-9.,]+%?")
_PARENTHESIS = re.compile(r"([^()]{1,120}?)\s?\(([^()]{1,80})\)")


def hedges(answer: str, reference: str) -> bool:
    """Whether an answer leaves open which of several it gives; words of the reference do not."""
    known = reference.casefold()
    return any(found.casefold() not in known for found in _HEDGE.findall(answer))


def talks_to_grader(text: str) -> bool:
    """Whether a text asks for its score, or points at the reference, instead of answering."""
    return bool(_GRADER.search(text))


def readings(final: str, question: str = "") -> list[tuple[str, ...]]:
    """Return what a final answer may state, its own wording first.

    Each reading is one or more values, all of which have to be right: "1/2 = 0.5" and
    "twelve (12)" state two. A short sentence is read for what it says after its verb ("The
    capital is Paris") or before it ("Paris is the capital"), or beside words of the question,
    unless it denies or compares.

    Example: ("Paris",) in readings("So the capital is Paris.")
    """
    found: dict[tuple[str, ...], None] = {(final,): None}
    if len(final) > MAX_STATEMENT_CHARS:
        return list(found)
    stated = _last_statement(final)
    if stated is not None:
        last, others = stated
        asked = _stems(question[:MAX_QUESTION_CHARS])
        for value in (last, *_sentence_values(last, asked)):
            for values in _values(value, asked):
                found[values + others] = None
    return list(found)


def _last_statement(final: str) -> tuple[str, tuple[str, ...]] | None:
    """The sentence that states the answer, and the bare values that others beside it state.

    None where a later sentence takes the answer back.
    """
    text = _DISPLAYED.sub(lambda shown: " ".join(shown.group().split()), final)
    pieces = [one for one in sentences(_OPEN_LINE.sub(" ", text)) if not _POLITE.search(one)]
    if len(pieces) < 2:
        return (pieces[0] if pieces else final), ()
    rest = pieces[1:]
    is_first = bool(_BARE_VALUE.fullmatch(pieces[0].strip()))
    if is_first and not any(_may_be_value(one) or _DENIAL.search(one) for one in rest):
        return pieces[0], ()
    if _HEDGE.match(pieces[-1]) or _DENIAL.match(pieces[-1]):
        return None
    others = (one.strip() for one in pieces[:-1])
    rivals = (one for one in others if _is_bare_value(one) and not _is_of_another(one, pieces[-1]))
    return pieces[-1], tuple(_sentence_values(one)[-1] for one in rivals)


def _is_of_another(sentence: str, last: str) -> bool:
    """Whether both say of what they speak, and speak of different things."""
    subjects = [_SUBJECT.match(one) for one in (sentence, last)]
    names = [subject[1].casefold() for subject in subjects if subject]
    return len(names) == 2 and names[0] != names[1]


def _may_be_value(sentence: str) -> bool:
    return len(sentence.split()) == 1 or bool(re.search(r"\d", sentence))


def _is_bare_value(sentence: str) -> bool:
    is_reply = sentence.casefold().strip(".!") in ("no", "yes")
    return (
        bool(_BARE_VALUE.fullmatch(sentence))
        and not is_reply
        and not sentence.endswith(("?", ",", ":"))
    )


def _sentence_values(sentence: str, asked: Sequence[str] = ()) -> list[str]:
    """What a sentence may say its value is; itself at least. `asked`: stems of the question."""
    if SUPPOSED.match(sentence):
        return [sentence]
    clauses = _clauses(sentence)
    said = [sentence, *clauses, *_set_apart(sentence.strip())]
    clause = clauses[-1]
    begin = 0
    for copula in list(_COPULA.finditer(clause))[:MAX_VERBS]:
        if begin and _NEXT_CLAUSE.search(clause, begin, copula.start()):
            # "The car is red and the house is blue" has no one value.
            break
        begin = copula.end()
        subject = clause[: copula.start()]
        # "He died in Berlin" does not say where he was born.
        is_known = copula.group().strip() not in _PLACES or _is_asked(subject, asked)
        if clause[begin:].strip() and is_known and _is_plain_subject(subject):
            said.append(clause[begin:])
    for form in (_ASSIGNED, _APPOSED, _AFTER_COLON):
        apart = form.fullmatch(clause)
        if apart and _is_plain_subject(apart[1]):
            said.append(apart[2])
    if not _DENIAL.search(clause):
        first = _VALUE_FIRST.fullmatch(clause)
        if first and _is_asked(first[2] or "", asked):
            said.append(first[1] or first[3])
        if holding := _HOLD.fullmatch(_END.sub("", clause)):
            said.append(holding[1])
        if beside := _beside_question(clause, asked):
            said.append(beside)
    return list(dict.fromkeys(said))


def _beside_question(clause: str, asked: Sequence[str]) -> str:
    """What remains of a clause without the words of the question around it.

    Example: left, of "The arrow points to the left." to "Where does the arrow point?"
    The words have to come in the order of the question: "Rome beat Naples" is no answer to "Who
    beat Rome?".
    """
    words = _END.sub("", clause).split()
    if clause.rstrip().endswith("?"):
        return ""
    start, end = 0, len(words)
    while start < end and _echoes(words[start], asked):
        start += 1
    while start < end and _echoes(words[end - 1], asked) and not _is_counted(words[start:end]):
        end -= 1
    around = (words[:start], words[end:])
    value = " ".join(words[start:end]).strip(" ,")
    # "In 3 hours" is no time that something takes.
    is_placed = start > 0 and words[start - 1].casefold() in _PLACES and value[:1].isdigit()
    is_asked = all(_in_order(_stems(" ".join(part)), asked) for part in around)
    return value if is_asked and not is_placed else ""


def _is_counted(words: Sequence[str]) -> bool:
    """Whether the last word is what the number before it counts."""
    return len(words) > 1 and words[-2][-1].isdigit() and words[-1].casefold() not in _EMPTY_WORDS


def _echoes(word: str, asked: Sequence[str]) -> bool:
    bare = word.strip("'\"").casefold()
    return bare in _EMPTY_WORDS or (bool(_WORD.fullmatch(bare)) and _stem(bare) in asked)


def _is_asked(words: str, asked: Sequence[str]) -> bool:
    return not asked or all(stem in asked or stem in _VERDICTS for stem in _stems(words))


def _in_order(stems: Sequence[str], asked: Sequence[str]) -> bool:
    rest = iter(asked)
    return all(stem in rest for stem in stems)


def _stems(text: str) -> list[str]:
    """The words of a text that say something, without their endings."""
    words = _WORD.findall(text.casefold())
    return [_stem(word) for word in words if word not in _EMPTY_WORDS]


def _stem(word: str) -> str:
    for ending in ("ing", "es", "ed", "s", "e"):
        if len(word) > len(ending) + 2 and word.endswith(ending):
            return word.removesuffix(ending)
    return word


def _clauses(sentence: str) -> list[str]:
    """The sentence without "so we get" in front and "because ..." behind, step by step."""
    text = sentence.strip().lstrip("= ")
    found = [text]
    for opening in (_LEAD, _WE_GET):
        if match := opening.match(text):
            text = text[match.end() :]
            found.append(text)
    for conclusion in list(_SO.finditer(text))[-1:]:
        text = text[conclusion.end() :]
        text = text[match.end() :] if (match := _WE_GET.match(text)) else text
        found.append(text)
    reason = _REASON.search(text)
    if reason and text[: reason.start()].strip():
        found.append(text[: reason.start()])
    return found


def _set_apart(text: str) -> list[str]:
    """The one part of a sentence that is bold, and the one that is mathematics."""
    found: list[str] = []
    for form in (_BOLD, _MATHS):
        parts = form.findall(text)
        # "The inverse of $A$" is not $A$.
        is_related = _RELATED.search(form.sub("**", text).partition("**")[0])
        if len(parts) == 1 and not is_related and not _DENIAL.search(form.sub(" ", text)):
            found.append(parts[0])
    return found


def _is_plain_subject(subject: str) -> bool:
    return len(subject.split()) <= MAX_SUBJECT_WORDS and not _DENIAL.search(subject)


def _values(value: str, asked: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """One value, or the several that an equation or a parenthesis puts side by side."""
    text = value.strip().removesuffix(".").removesuffix("。")
    found: list[tuple[str, ...]] = [(value,)]
    parts = [text] if "=" not in text else [_part(part) for part in text.split("=")]
    parts[-1] = _without_place(parts[-1], asked)
    if 1 < len(parts) <= 6 and all(parts):
        found.append(tuple(parts))
        if _NAME.fullmatch(parts[0]) or _WORKING.fullmatch(parts[0]):
            # The working may stay undone on the way, but no other number may.
            others = (part for part in parts[:-1] if _BARE_NUMBER.fullmatch(part))
            found.append((*others, parts[-1]))
    elif parts != [text]:
        found.append(tuple(parts))
    if both := _PARENTHESIS.fullmatch(text):
        found.append((both[1], both[2]))
    return found


def _part(text: str) -> str:
    """A side of an equation, without half a pair of dollar signs; one before a digit is money."""
    text = text.strip(" *")
    if text.count("$") % 2 == 0:
        return text
    return text[:-1] if text.endswith("$") else re.sub(r"^\$(?![0-9])", "", text)


def _without_place(text: str, asked: Sequence[str]) -> str:
    """The number of "720 ways to arrange the books", unless the question is of something else."""
    placed = _PLACED.fullmatch(text)
    if not placed or _DENIAL.search(text):
        return text
    is_asked = not asked or all(stem in asked for stem in _stems(placed[2] or ""))
    return placed[1] if is_asked else text
