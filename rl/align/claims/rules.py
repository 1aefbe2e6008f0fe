"""Claims by rules: an answer cut into statements of fact, each with its yes/no question.

    answer -> lines, list items -> sentences -> clauses -> claims

For runs without a language model to divide with, and where such a model's reply cannot be read. It
leaves out what states no fact (questions, greetings, opinions, guesses, talk about oneself), and
makes a bare answer a statement by the question that it answers. The same text gives the same claims
in every process; every expression is bounded, so that matching stays linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from rl.align.claims.types import Claim, DividedResponse, Response
from rl.loop.stages import Prompt

DIVIDER = "rules/1"
REQUEST = "Please answer yes or no."

# Wording. A capital begins a sentence, so most of it is read without regard to case.

_AUXILIARY = (
    "is are was were am be been has have had do does did can will would shall should must might"
    " isn't aren't wasn't weren't hasn't haven't hadn't doesn't don't didn't can't cannot won't"
)
# Forms that are hardly ever nouns.
_VERBS = (
    "shows showed shown depicts depict contains contain contained includes include included holds"
    " holding held wears wearing wore sits sat stands stood lies lay appears appear appeared says"
    " said reads equals equal features displays displayed presents indicates indicate represents"
    " represent consists consist belongs belong becomes become became remains remain rises rose"
    " looks looked seems seem eats ate drinks drank runs ran walks walked plays played rides rode"
    " carries carry carried hangs hung leans leaned points pointed faces faced surrounds surrounded"
    " covers covered uses used gives gave gets got takes took makes made goes went comes came"
    " lives lived works worked costs cost weighs measures lasts begins began starts started ends"
    " ended won wins wrote invented discovered founded died moved moves flows orbits borders"
    " produces produced causes caused means meant needs need requires require adds added totals"
    " gives yields yield barks bark flies flew swims swam sleeps slept jumps jumped smiles smiled"
    " stays stayed keeps kept knows knew tells told sees saw finds found occurs occurred happens"
    " happened exists exist differs differ boils freezes melts reaches reached"
)

_VERB_FORMS = frozenset(f"{_AUXILIARY} {_VERBS}".split())
_CONTRACTION = re.compile(r"(?:it|he|she|that|there|they|we|you|who|what)'(?:s|re)")
_WORD = re.compile(r"[A-Za-z]{1,30}(?:['’][A-Za-z]{1,2})?")
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_CHINESE_VERB = re.compile(r"[是有在为位穿戴拿站坐显等会能叫做属包含]")
_NO_FACT = re.compile(
    # Greetings, offers, thanks.
    r"^(?:hello|hi|hey|greetings|welcome|thanks|thank you|sorry|goodbye|bye|great question"
    r"|good question|you['’]re welcome|sure|certainly|of course|absolutely|okay|ok|no problem)\b"
    r"(?!.{0,200}\b(?:is|are|was|were|has|have|shows)\b)"
    r"|^(?:here(?:['’]s| is| are)\b(?! (?:a|an|the) [a-z]{1,20} (?:is|on|in|at|of))|let me\b"
    r"|let['’]?s\b|please\b|feel free|if you\b|imagine\b|consider\b|suppose\b|hope\b"
    r"|remember\b|see\b|as an ai\b|as a language model\b)"
    r"|\b(?:let me know|hope (?:this|that) helps|happy to help|feel free to)\b"
    # The writer about itself.
    r"|^(?:i(?=\s[a-z])|i['’](?:m|ve|d|ll)|we['’](?:ve|d|ll|re)|my|our)\b|\bas an ai\b"
    # Opinions.
    r"|\b(?:in my (?:opinion|view)|i (?:think|believe|feel|guess|suppose|assume|hope|would)"
    r"|personally|arguably|should|ought to|beautiful|beautifully|lovely|amazing|wonderful"
    r"|delightful|charming|stunning|impressive|breathtaking|gorgeous|pleasant|cozy|adorable"
    r"|fascinating|interesting|interestingly|magnificent|best of all|unfortunately|fortunately"
    r"|sense of|atmosphere|vibe|ambiance|mood)\b"
    # Guesses.
    r"|\b(?:maybe|perhaps|possibly|probably|presumably|likely|unlikely|apparently|seemingly|might"
    r"|could|would|(?:seem|appear)(?:s|ed)? (?:to|as|like|that)|seem(?:s|ed)?|looks? (?:like|as if)"
    r"|suggest(?:s|ed|ing)?|imply|implies|implying|not sure|unsure|unclear|uncertain"
    r"|not (?:clear|certain|possible to)|(?:cannot|can['’]?t|could not) (?:be )?(?:determine|tell"
    r"|say|see|know|identif|answer|help|provide)[a-z]{0,4}|difficult to|hard to)\b"
    r"|也许|可能|大概|似乎|好像|或许|看起来|看上去|应该|推测|估计|我觉得|我认为|我想|我猜|美丽|漂亮|不确定"
    r"|无法(?:确定|判断|回答)|^(?:你好|您好|谢谢|希望|请|抱歉|对不起|当然|好的|让我)",
    re.IGNORECASE,
)
# The month begins with a capital.
_MAY = re.compile(r"\bmay\b")
_LEAD = re.compile(
    r"(?:(?P<ordinal>first|second|third)|however|therefore|thus|hence|so|then|also|additionally"
    r"|moreover|furthermore|besides|finally|firstly|secondly|thirdly|next|lastly|overall|in summary"
    r"|in conclusion|to summarize|in addition|in total|in short|in fact|as a result"
    r"|for example|for instance|of course|certainly|sure|well|yes|no|yeah|nope|indeed|and|but"
    r"|specifically|notably|again|now|here|meanwhile|on the other hand)\s?[,:!]\s?"
    r"|(?:therefore|thus|hence|so|and|but|also)\s"
    r"|(?:note|notice|we (?:can )?(?:see|note|know|find|conclude|observe)|i (?:can )?(?:see|note"
    r"|observe)|you can see|it is (?:clear|true|a fact|known)|the fact is) that\s"
    r"|(?:we|i) (?:get|have|find|obtain)\s(?=[\d$\\-])"
    r"|(?:因此|所以|故|此外|另外|首先|其次|最后|总之|然而|不过|但是?|而且|并且|同时|是的|不是|对|好的|当然)\s?[,，:：]\s?"
    r"|(?:因此|所以|此外|另外|首先|其次|最后|总之|然而|但是|而且|并且)",
    re.IGNORECASE,
)
_I_SEE = re.compile(
    r"(?:i|we|you) (?:can )?see\s(?=(?:a|an|the|one|two|three|many|several)\b)", re.I
)
# "It is 27." speaks of the question, where nothing stands before it.
_STATED_ANSWER = re.compile(
    r"(?:the |my |our )?(?:(?:final|correct|right) )?(?:answer|result|solution)"
    r"(?: to (?:the|this|your) (?:question|problem))?\s?(?:is|are|=|:|：)\s?:?\s?(?P<answer>\S.*)"
    r"|(?:最终|正确)?(?:答案|结果)(?:是|为|:|：)\s?(?P<chinese>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_IT_IS = re.compile(r"(?:it['’]s|it is|they are|they['’]re)\s(?P<answer>\S.*)", re.I | re.DOTALL)
_EQUATION = re.compile(r"[\d(][\d .,+*/×÷·()−-]{0,300}[=<>≤≥≈][\d .,+*/×÷·()=<>≤≥≈−-]{0,300}")

# Sentences.

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st rev hon sr jr capt gen lt col sgt vs e.g i.e cf fig figs eq sec ch vol pp"
    " approx ca dept est mt ft inc ltd co corp jan feb mar apr jun jul aug sep sept oct nov dec"
    " al viz resp".split()
)
# After these a capital may begin a sentence, or not.
_OPEN_ABBREVIATIONS = frozenset("etc a.m p.m inc ltd co corp jr sr al".split())
_ENDS = re.compile(r"(?:[.!?]+|[。！？；;…]+)[\"'”’)\]」』）]{0,3}")
_STARTER = re.compile(
    r"(?:the|it|he|she|they|this|that|these|those|there|in|on|at|a|an|we|its|his|her|their|both"
    r"|another|one|two|three)\b",
    re.IGNORECASE,
)
_LAST_WORD = re.compile(r"[\w.]{1,12}$")
_LIST_ITEM = re.compile(r"\s{0,12}(?:[-*+•–]\s|\(?\d{1,3}[.):]\s|\(?\d{1,3}[、）]\s?)\s{0,8}")
_FENCE = re.compile(r"\s{0,3}(?:```|~~~)")
_RULE = re.compile(r"[\s|:=_*-]+")
_TABLE_RULE = re.compile(r"\|[\s|:-]*-[\s|:-]*")
_LINK = re.compile(r"!?\[([^\[\]\n]{0,200})\]\([^()\s]{1,300}\)")
_BOXED = re.compile(r"\\(?:boxed|text)\{((?:[^{}]|\{[^{}]{0,100}\}){1,200})\}")
_EMPHASIS = re.compile(r"\*\*|__|`|\*(?=\w)|(?<=\w)\*(?!\w)")

# Clauses.

_JOINT = re.compile(
    r"(?:,\s|\s)(?:and|but)\s(?=(?:there|it|he|she|they)['’ ])"
    r"|,\s(?:and|but|yet|while|whereas|so(?! that))\s|;\s?|；"
    r"|[,，](?=(?:而且|并且|但是|但|同时|而)[^，,]{2})",
    re.IGNORECASE,
)
# What stands under these is not asserted by itself.
_SUBORDINATE = re.compile(
    r"\b(?:if|when|whenever|because|although|though|unless|until|since|whether|that|which|who|whom"
    r"|whose|where|either|neither|not only|after|before|as|say|says|said|claims?|claimed)\b"
    r"|如果|因为|虽然|尽管|除非|只要|既然|当",
    re.IGNORECASE,
)

# Antecedents.

_DETERMINER = "the|a|an|this|that|these|those|one|two|three|four|five|several|many|both|some"
_PREPOSITION = "on|in|at|with|near|by|of|next|behind|under|above|beside|between|to|from|over|for"
_SUBJECT = re.compile(
    rf"(?P<subject>(?:(?:{_DETERMINER})(?:\s[a-z-]{{1,20}}){{1,3}}?"
    r"|[A-Z][a-z]{1,20}(?:\s[A-Z][a-z]{1,20}){0,2}))"
    r"\s(?P<verb>is|are|was|were|has|have|had|"
    rf"{'|'.join(_VERBS.split())})\b(?P<rest>.{{0,400}})",
)
_THERE_IS = re.compile(
    rf"there\s(?P<verb>is|are|was|were)\s(?P<subject>(?:{_DETERMINER})(?:\s[a-z-]{{1,20}}){{1,3}}?)"
    rf"(?P<rest>(?:\s(?:{_PREPOSITION}|[a-z]{{2,20}}ing)\b.{{0,400}}|[.,].{{0,400}}))",
)
_PRONOUN = re.compile(r"(?P<word>it|he|she|they|its|his|her|their)\s(?P<next>.{1,40})", re.I)
_PERSON = re.compile(
    r"\b(?:man|men|woman|women|boy|boys|girl|girls|person|people|child|children|baby|player|players"
    r"|lady|guy|king|queen|father|mother|son|daughter|brother|sister|doctor|teacher|student"
    r"|students|worker|workers|rider|skier|surfer|chef|driver|actor|actress|artist|author|he|she)\b"
)
_FEMALE = re.compile(
    r"\b(?:women|woman|girls?|lady|queen|mother|daughter|sister|actress|she)\b", re.IGNORECASE
)
_MALE = re.compile(r"\b(?:men|man|boys?|guy|king|father|son|brother|actor|he)\b", re.IGNORECASE)
_NOUN_PHRASE = re.compile(
    r"\b(?:the|a|an|this|that|these|those|one|two|three|its|his|her|their|another|each|every|my"
    r"|your|our)\s|\b(?!I\b)[A-Z][a-z]|\b[a-z]{3,20}s\b",
)
_PLURAL = re.compile(
    r"\b(?:these|those|two|three|four|five|several|many|both|some|and)\b|\b[a-z]{2,20}[^s\W]s\b",
)
# "It is raining": of no thing.
_EMPTY_IT = re.compile(
    r"(?:is|was|['’]s)\s(?:\d|rain|snow|sunny|cloudy|windy|cold|hot|warm|late|early|noon|midnight"
    r"|night|day|morning|evening|winter|summer|autumn|spring|not\s|(?:clear|true|possible|important"
    r"|known|said|worth|easy|hard|difficult|common|likely)\b)|takes\b|takes time|rains|snows",
    re.IGNORECASE,
)
_LOWERED = re.compile(
    r"(?:The|A|An|There|It|He|She|They|This|That|These|Those|In|On|At|One|Two|Three|Four|Five|Six"
    r"|Seven|Eight|Nine|Ten|Both|All|Some|Many|Several|Most|No|None|Each|Every|Its|His|Her|Their"
    r"|Behind|Under|Above|Below|Near|Next|To|From|With|By|After|Before|During|People|Neither)\b"
)


@dataclass(frozen=True)
class _Piece:
    """A line of an answer or an item of a list."""

    text: str
    lead: str | None = None
    """What the list is one of, without its colon: `The picture shows`."""


def divide(response: Response, fallback: str | None = None) -> DividedResponse:
    """Return the response with its claims; none where it has no answer.

    fallback: why rules divide it in place of the divider that was asked for.
    """
    answer = response.answer
    found = [] if answer is None else claims(asked(response.prompt), answer)
    divided = tuple(Claim(claim, question(claim)) for claim in found)
    return DividedResponse(response, divided, DIVIDER, fallback)


def asked(prompt: Prompt) -> str:
    """The text of the prompt's last user message, on one line."""
    for message in reversed(prompt.messages):
        if message["role"] == "user":
            content = message["content"]
            if not isinstance(content, str):
                content = " ".join(part["text"] for part in content if part["type"] == "text")
            return " ".join(content.split())
    return ""


def claims(asked: str, answer: str) -> list[str]:
    """Return the statements of fact of an answer, in its order, each once.

    asked: the question, which a bare answer needs to be a statement.

    Example: claims("a2b9?", "11") == ['The answer to "a2b9?" is 11.']
    """
    pieces = list(_pieces(answer))
    found: dict[str, str] = {}
    previous: str | None = None
    for piece in pieces:
        for clause in _clauses_of(piece):
            claim = _claim(clause, asked, previous, is_alone=len(pieces) == 1)
            previous = claim or clause
            if claim is not None:
                found.setdefault(claim.casefold(), claim)
    return list(found.values())


def question(claim: str) -> str:
    """Return the yes/no question of a claim, which keeps its tense and its negation.

    Example: question("The cup is not red.") ==
    "Is it correct that the cup is not red? Please answer yes or no."
    """
    stated = claim.strip().rstrip(".。!！ ")
    if _CHINESE.match(stated):
        stated = f"“{stated}”"
    elif _LOWERED.match(stated):
        stated = stated[0].lower() + stated[1:]
    return f"Is it correct that {stated}? {REQUEST}"


# From an answer to clauses.


def _pieces(answer: str) -> Iterator[_Piece]:
    lead = None
    for line, is_item in _lines(answer):
        if line.endswith((":", "：")):
            *before, last = _sentences(line)
            # "Here is what I see" leads to a list, and is no part of what its items say.
            last = _without_lead(last).rstrip(":： ")
            lead = last if _is_clause(last) and not _NO_FACT.search(last) else None
            if before:
                yield _Piece(" ".join(before))
        else:
            lead = lead if is_item else None
            yield _Piece(line, lead)


def _lines(answer: str) -> Iterator[tuple[str, bool]]:
    """Lines without mark-up, and whether each is an item of a list; no code, headings and rules."""
    in_code = False
    raw = answer.splitlines()
    for line, following in zip_longest(raw, raw[1:], fillvalue=""):
        if _FENCE.match(line):
            in_code = not in_code
            continue
        is_heading = line.startswith("#") and len(raw) > 1
        is_heading |= line.startswith("|") and _TABLE_RULE.fullmatch(following) is not None
        if in_code or is_heading or _RULE.fullmatch(line):
            continue
        item = _LIST_ITEM.match(line)
        text = _without_markup(line[item.end() :] if item else line)
        if text:
            yield text, item is not None


def _without_markup(line: str) -> str:
    line = _BOXED.sub(r"\1", _LINK.sub(r"\1", line.lstrip("# ")))
    line = _EMPHASIS.sub("", line)
    if line.startswith("|"):
        line = ", ".join(cell.strip() for cell in line.strip("| ").split("|"))
    return " ".join(line.split())


def _clauses_of(piece: _Piece) -> Iterator[str]:
    if piece.lead and not _is_clause(piece.text):
        yield f"{piece.lead} {piece.text}"
        return
    for sentence in _sentences(piece.text):
        yield from _clauses(sentence)


def _sentences(text: str) -> list[str]:
    """Cut where a sentence ends, and not at abbreviations, initials, decimals and addresses."""
    found, start = [], 0
    for end in _ENDS.finditer(text):
        if _is_end(text, end):
            found.append(text[start : end.end()].strip())
            start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _is_end(text: str, end: re.Match[str]) -> bool:
    mark, after = end[0], text[end.end() : end.end() + 20]
    if mark[0] in "。！？" or not after.strip():
        return True
    if mark[0] in ";；":
        return False  # of clauses, not of sentences
    if not after[0].isspace():
        # "red.The": a space is missing; "3.5", "Node.js" and "U.S.A." are not ends.
        before = text[max(0, end.start() - 1) : end.start()]
        is_missing = after[0].isupper() and after[1:2].islower()
        is_missing &= before.islower() or before.isdigit()
        return bool(_CHINESE.match(after)) or (mark == "." and is_missing)
    following = after.lstrip()
    if following[0].islower():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    return _ends_after(text[max(0, end.start() - 12) : end.start()], following)


def _ends_after(before: str, following: str) -> bool:
    """Whether a full stop between a word and a capital, digit or sign ends a sentence."""
    found = _LAST_WORD.search(before)
    word = found[0] if found else ""
    if word.casefold() in _OPEN_ABBREVIATIONS or ("." in word and not word[0].isdigit()):
        return word.casefold() not in _ABBREVIATIONS and bool(_STARTER.match(following))
    if word in ("No", "no", "Nos") and following[0].isdigit():
        return False
    is_initial = len(word) == 1 and word.isupper() and word not in "AI" and following[0].isupper()
    return word.casefold() not in _ABBREVIATIONS and not is_initial


def _clauses(sentence: str) -> Iterator[str]:
    """Cut where both sides assert something by themselves."""
    start = last_end = 0
    # Of what stands between `start` and this place.
    is_whole = is_subordinate = False
    for begin, end in _segments(sentence):
        segment = sentence[begin:end]
        is_clause = _is_clause(segment)
        if is_clause and is_whole and not is_subordinate:
            yield sentence[start:last_end].strip()
            start, is_whole = begin, False
        is_whole |= is_clause
        is_subordinate |= _SUBORDINATE.search(segment) is not None
        last_end = end
    yield sentence[start:].strip()


def _segments(sentence: str) -> Iterator[tuple[int, int]]:
    """Begin and end of what stands between the joints."""
    begin = 0
    for joint in _JOINT.finditer(sentence):
        yield begin, joint.start()
        begin = joint.end()
    yield begin, len(sentence)


def _is_clause(text: str) -> bool:
    """Whether it has a subject and a verb."""
    for place, word in enumerate(_WORD.finditer(text)):
        lowered = word[0].casefold().replace("’", "'")
        if (place and lowered in _VERB_FORMS) or _CONTRACTION.fullmatch(lowered):
            return True
    return bool(_CHINESE.search(text) and _CHINESE_VERB.search(text, 1))


# From a clause to a claim.


def _claim(clause: str, asked: str, previous: str | None, is_alone: bool) -> str | None:
    """The claim that a clause makes, by itself; None if it makes none.

    previous: the claim, or clause, before it. is_alone: whether its line is the whole answer.
    """
    text = _without_lead(clause)
    if not _states_fact(text):
        return None
    answer = _stated_answer(text, previous is None, is_alone)
    if answer is not None:
        return _answer("is", asked, answer)
    if not _is_clause(text) and not _is_equation(text):
        return _answer("includes", asked, _quoted(_bare(text)))
    return _sentence(text if previous is None else _resolved(text, previous))


def _states_fact(text: str) -> bool:
    if text.endswith(("?", "？")) or not any(map(str.isalnum, text)):
        return False
    return not _NO_FACT.search(text) and not _MAY.search(text)


def _stated_answer(text: str, is_first: bool, is_alone: bool) -> str | None:
    """What the clause says the answer to be; None if it does not speak of it."""
    stated = _STATED_ANSWER.fullmatch(text) or (_IT_IS.fullmatch(text) if is_first else None)
    if stated is not None:
        return next(filter(None, stated.groups()))
    is_bare = is_first and is_alone and not _is_clause(text) and not _is_equation(text)
    return text if is_bare else None


def _is_equation(text: str) -> bool:
    return _EQUATION.fullmatch(text.rstrip(". ")) is not None


def _without_lead(clause: str) -> str:
    text = _unwrapped(clause.strip(" ,;，；"))
    start = 0
    while lead := _LEAD.match(text, start):
        rest = text[lead.end() : lead.end() + 200]
        # "first, second" may be the whole answer.
        if not rest.strip() or (lead["ordinal"] and not _is_clause(rest)):
            break
        start = lead.end()
    text = text[start:].lstrip()
    if seen := _I_SEE.match(text):
        text = f"One can see {text[seen.end() :]}"
    return text


def _unwrapped(text: str) -> str:
    """Without the quotes or brackets around all of it."""
    is_wrapped = text[:1] + text[-1:] in ('""', "''", "“”", "‘’", "()", "（）")
    inner = text[1:-1]
    return inner.strip() if is_wrapped and text[0] not in inner else text


def _answer(verb: str, asked: str, answer: str) -> str:
    to = f" to {_quoted(asked)}" if asked else ""
    return f"The answer{to} {verb} {_bare(answer)}."


def _bare(answer: str) -> str:
    stripped = answer.strip().rstrip(".。!！,，;； ") or answer.strip()
    return stripped.lower() if stripped in ("Yes", "No") else stripped


def _quoted(text: str) -> str:
    inner = text.replace('"', "'")
    return f'"{inner}"'


def _sentence(text: str) -> str:
    """With a capital and a full stop; an address such as `www.site.com` keeps its letters."""
    text = text.rstrip(" ,，;；")
    if text.partition(" ")[0].replace("’", "'").replace("'", "").isalpha():
        text = text[0].upper() + text[1:]
    if text.endswith((".", "。", "!", "！", '."', ".”")):
        return text
    return text + ("。" if _CHINESE.search(text[-2:]) else ".")


def _resolved(text: str, previous: str) -> str:
    """The text with the pronoun that begins it replaced, where only one thing can be meant."""
    pronoun = _PRONOUN.match(text)
    if pronoun is None:
        return text
    word = pronoun["word"].casefold()
    antecedent = _antecedent(previous, word, pronoun["next"])
    if antecedent is None:
        return text
    owner = "'" if antecedent.endswith("s") else "'s"
    is_owner = word in ("its", "his", "her", "their")
    return antecedent + (owner if is_owner else "") + text[pronoun.end("word") :]


def _antecedent(previous: str, pronoun: str, following: str) -> str | None:
    """The subject of the sentence before, if it fits the pronoun and nothing else there does."""
    lowered = previous[0].lower() + previous[1:] if _LOWERED.match(previous) else previous
    subject = _THERE_IS.match(lowered) or _SUBJECT.match(lowered)
    if subject is None or (pronoun == "it" and _EMPTY_IT.match(following)):
        return None
    phrase, rest = subject["subject"], subject["rest"]
    is_person = bool(_PERSON.search(phrase))
    is_plural = subject["verb"] in ("are", "were", "have") or bool(_PLURAL.search(phrase))
    if pronoun in ("they", "their"):
        fits, rivals = is_plural, _PLURAL
    elif pronoun in ("he", "she", "his", "her"):
        other = _FEMALE if pronoun in ("he", "his") else _MALE
        fits, rivals = is_person and not is_plural and not other.search(phrase), _PERSON
    else:
        fits, rivals = not is_person and not is_plural, _NOUN_PHRASE
    if not fits or rivals.search(rest):
        return None
    return _definite(phrase)


def _definite(phrase: str) -> str:
    """Example: _definite("a black cat") == "The black cat" """
    first, _, others = phrase.partition(" ")
    if first in ("a", "an", "this", "that"):
        return f"The {others}"
    if first in ("one", "two", "three", "four", "five", "these", "those", "several", "many"):
        return f"The {others}" if first in ("these", "those") else f"The {first} {others}"
    return phrase[0].upper() + phrase[1:]
