"""Claims by rules: an answer cut into statements of fact, each with its yes/no question.

    answer -> lines and list items -> sentences -> claims

For runs without a language model to divide with, and where such a model's reply cannot be read. A
bare answer becomes a statement through the question that it answers; a sentence is one claim as it
stands. What states no fact is left out: questions, greetings, opinions, guesses, and talk about the
writer. A sentence is not taken apart further, and a pronoun stays: rules that do more are wrong too
often, and the language model does it well. Every expression is bounded, so matching stays linear.
"""

import re

from rewards.text.text_rewards import question_text
from rl.align.claims.types import Claim, DividedResponse, Response
from rl.loop.stages import Prompt

DIVIDER = "rules/2"
REQUEST = "Please answer yes or no."

# A text with one of these words after its first one is a sentence. Without any it is taken for a
# bare answer, and "The dog barks." becomes `The answer to "..." is The dog barks.`: a longer claim
# than need be, which can still be checked. So the list only has to hold the most frequent words.
_VERB = re.compile(
    r"\S\s(?:(?:is|are|was|were|be|been|has|have|had|does?|did|can|will|shall|cannot)(?:n['’]t)?"
    r"|shows?|depicts?|contains?|includes?|holds?|holding|wears?|wearing|sits?|stands?|lies|says?"
    r"|said|reads?|equals?|looks?|eats?|drinks?|runs?|walks?|plays?|rides?|carries|makes?|goes"
    r"|comes?|began|begins|starts|started|weighs?|costs?|lives?|means?|appears?|becomes?)\b"
    r"|\b(?:it|he|she|that|there|they)['’](?:s|re)\b"
    r"|[\u4e00-\u9fff][是有在为穿戴拿站坐显等会能叫做属包含]",
    re.IGNORECASE,
)
_EQUATION = re.compile(r"[\d(][\d .,+*/×÷·()−-]{0,300}[=<>≤≥≈][\d .,+*/×÷·()=<>≤≥≈−-]{0,300}")
_NO_FACT = re.compile(
    # Greetings, offers and thanks; the writer about itself.
    r"^(?:hello|hi|hey|thanks|thank you|welcome|sorry|sure|of course|certainly|great question"
    r"|you['’]re welcome|please|let me|feel free|if you|here(?:['’]s| is what| are)|as an ai"
    r"|i(?=\s[a-z])|i['’](?:m|ve|d|ll)|we['’](?:ve|d|ll|re)|my|our)\b"
    # Opinions and guesses.
    r"|\b(?:hope|let me know|i (?:think|believe|guess|would)|in my opinion|should|beautiful|lovely"
    r"|amazing|wonderful|stunning|interesting|unfortunately|maybe|perhaps|possibly|probably|likely"
    r"|apparently|might|could|would|seems?|seemed|appears? to|looks? like|suggests?|not sure"
    r"|unclear|cannot be (?:determined|seen))\b"
    r"|也许|可能|大概|似乎|好像|或许|看起来|应该|我觉得|我认为|我想|不确定|无法确定"
    r"|^(?:你好|您好|谢谢|希望|请|抱歉|对不起)",
    re.IGNORECASE,
)
# The month begins with a capital.
_MAY = re.compile(r"\bmay\b")
# What leads a sentence in and adds nothing to what it says.
_LEAD = re.compile(
    r"(?:finally|however|therefore|thus|so|also|then|overall|in total|in short"
    r"|in conclusion|for example|yes|no|well|因此|所以|另外|最后|总之)\s?[,:!，：]\s?"
    r"|(?:so|therefore|thus)\s(?=[\d$\\])"
    # "first, second" may be the whole answer.
    r"|(?:first|second|third),\s(?=(?:the|an?|it|there)\b)"
    r"|(?:note|we (?:can )?see|i (?:can )?see|you can see) that\s",
    re.IGNORECASE,
)
_I_SEE = re.compile(
    r"^(?:i|we|you) (?:can )?see\s(?=(?:a|an|the|one|two|three|many|several)\b)", re.I
)
_STATED_ANSWER = re.compile(
    r"(?:the |my )?(?:(?:final|correct) )?(?:answer|result)\s?(?:is|:|=)\s?(?P<english>\S.*)"
    r"|(?:最终|正确)?(?:答案|结果)(?:是|为|:|：)\s?(?P<chinese>\S.*)",
    re.IGNORECASE,
)
_IT_IS = re.compile(r"(?:it['’]s|it is|they are)\s(?P<answer>\S.*)", re.IGNORECASE)

_LIST_ITEM = re.compile(r"\s{0,12}(?:[-*+•–]\s|\(?\d{1,3}[.):]\s|\(?\d{1,3}[、）]\s?)\s{0,8}")
_FENCE = re.compile(r"\s{0,3}(?:```|~~~)")
_RULE = re.compile(r"[\s|:=_*-]+")
_BOXED = re.compile(r"\\(?:boxed|text)\{((?:[^{}]|\{[^{}]{0,100}\}){1,200})\}")
_EMPHASIS = re.compile(r"\*\*|__|`|\*(?=\w)|(?<=\w)\*(?!\w)")

# Whether a mark ends a sentence shows in what follows it; "red.The" lacks a space. A run of marks
# is looked at once and as a whole: trying each of its marks would take quadratic time.
_END = re.compile(
    r"[。！？…]+[”’」』）]{0,3}"
    r"|(?<![.!?])[.!?]++[\"'”’)\]]{0,3}(?=\s+[^\sa-z]|(?<=[a-z0-9].)[A-Z][a-z])"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:mr|mrs|ms|dr|prof|st|sr|jr|gen|vs|fig|no|vol|approx|etc|[b-hj-z])$",
    re.IGNORECASE,
)
# "U.S." and "p.m." end a sentence only before a word that hardly ever follows them inside one.
_DOTTED = re.compile(r"\w\.\w$")
_STARTER = re.compile(r"\s+(?:the|it|he|she|they|this|that|these|there|in|on|at|an?|we)\b", re.I)

# Inside a question these words begin with a small letter; a name keeps its capital.
_LOWERED = re.compile(
    r"(?:The|An?|There|It|He|She|They|This|That|These|Those|In|On|At|One|Two|Three|Four|Five|Both"
    r"|All|Some|Many|Several|Most|No|Each|Every|Its|His|Her|Their)\b"
)


def divide(response: Response, fallback: str | None = None) -> DividedResponse:
    """fallback: why rules divide the response in place of the divider that was configured."""
    answer = response.answer
    texts = [] if answer is None else claims(last_question(response.prompt), answer)
    divided = tuple(Claim(text, question(text)) for text in texts)
    return DividedResponse(response, divided, DIVIDER, fallback)


def last_question(prompt: Prompt) -> str:
    """What the user asked last, on one line."""
    return " ".join(question_text(prompt).split())


def claims(asked_question: str, answer: str) -> list[str]:
    """Return the statements of fact of an answer, in its order, each once.

    asked_question: which a bare answer needs to be a statement.

    Example: claims("a2b9?", "11") == ['The answer to "a2b9?" is 11.']
    """
    lines = _lines(answer)
    num_heads = sum(line.endswith((":", "：")) for line, _ in lines)
    lead = None
    unique: dict[str, str] = {}
    is_first, is_alone = True, len(lines) - num_heads == 1
    for line, is_item in lines:
        # "The picture shows:" begins every item of the list that follows.
        if line.endswith((":", "：")):
            lead = line.rstrip(":： ") if _VERB.search(line) and not _NO_FACT.search(line) else None
            continue
        is_rest = is_item and lead is not None and not _VERB.search(line)
        lead = lead if is_item else None
        for sentence in [f"{lead} {line}"] if is_rest else _sentences(line):
            claim = _claim(sentence, asked_question, is_first, is_first and is_alone)
            is_first = False
            if claim is not None:
                unique.setdefault(claim.casefold(), claim)
    return list(unique.values())


def question(claim: str) -> str:
    """Return the yes/no question of a claim, which keeps its tense and its negation.

    Example: question("The cup is not red.") ==
    "Is it correct that the cup is not red? Please answer yes or no."
    """
    stated = claim.strip().rstrip(".。!！ ")
    if "\u3400" <= stated[:1] <= "\u9fff":
        stated = f"“{stated}”"
    elif _LOWERED.match(stated):
        stated = stated[0].lower() + stated[1:]
    return f"Is it correct that {stated}? {REQUEST}"


def _lines(answer: str) -> list[tuple[str, bool]]:
    """Lines without mark-up, and whether each is a list item; no code, headings or rulers."""
    kept: list[tuple[str, bool]] = []
    in_code = False
    lines = answer.splitlines()
    for line in lines:
        if _FENCE.match(line):
            in_code = not in_code
        elif _RULE.fullmatch(line):
            # The ruler under the head of a table: the names of columns state nothing.
            if line.startswith("|") and "-" in line and kept:
                kept.pop()
        elif not in_code and not (line.startswith("#") and len(lines) > 1):
            item = _LIST_ITEM.match(line)
            text = line[item.end() :] if item else line.lstrip("# ")
            if text.startswith("|"):
                text = ", ".join(cell.strip() for cell in text.strip("| ").split("|"))
            text = " ".join(_EMPHASIS.sub("", _BOXED.sub(r"\1", text)).split())
            if text:
                kept.append((text, item is not None))
    return kept


def _sentences(line: str) -> list[str]:
    """Cut where a sentence ends, and not at abbreviations, initials, decimals and addresses."""
    sentences, start = [], 0
    for end in _END.finditer(line):
        before = line[max(start, end.start() - 12) : end.start()]
        if end[0] == ".":
            if _ABBREVIATION.search(before):
                continue
            if _DOTTED.search(before) and not _STARTER.match(line, end.end()):
                continue
        sentences.append(line[start : end.end()].strip())
        start = end.end()
    return [sentence for sentence in (*sentences, line[start:].strip()) if sentence]


def _claim(sentence: str, asked_question: str, is_first: bool, is_alone: bool) -> str | None:
    """The claim that a sentence makes; None if it states no fact.

    is_first: whether nothing stands before it, so that "It is 27." speaks of the question.
    is_alone: whether it may be the whole answer.
    """
    text = sentence.strip(" ,;，；\"'“”")
    start = 0
    while (lead := _LEAD.match(text, start)) and text[lead.end() : lead.end() + 200].strip():
        start = lead.end()
    text = _I_SEE.sub("One can see ", text[start:].strip())
    is_question = text.endswith(("?", "？"))
    if is_question or _NO_FACT.search(text) or _MAY.search(text) or not any(map(str.isalnum, text)):
        return None
    stated = _STATED_ANSWER.fullmatch(text) or (_IT_IS.fullmatch(text) if is_first else None)
    if stated is None and (_VERB.search(text) or _EQUATION.fullmatch(text.rstrip(". "))):
        # An address such as `www.site.com` keeps its letters.
        is_word = text.partition(" ")[0].replace("'", "").isalpha()
        text = text[0].upper() + text[1:] if is_word else text
        return text if text.endswith((".", "。", "!", "！")) else f"{text}."
    answer = next(filter(None, stated.groups())) if stated else text
    answer = answer.strip().rstrip(".。!！,，;； ") or answer
    quoted = answer.replace('"', "'")
    to = ' to "{}"'.format(asked_question.replace('"', "'")) if asked_question else ""
    if stated or is_alone:
        return f"The answer{to} is {answer.lower() if answer in ('Yes', 'No') else answer}."
    return f'The answer{to} includes "{quoted}".'
