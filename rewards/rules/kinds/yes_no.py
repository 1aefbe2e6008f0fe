"""Yes or no, true or false, 是 or 否, with or without the reason after it."""

import re

from rewards.rules.kinds.comparison import Ask
from rewards.rules.kinds.texts import is_chemical
from rewards.rules.reading.notation import plain
from rewards.rules.reading.question import Question, stems
from rewards.rules.reading.wording import any_of, pattern_of

_YES = frozenset("yes true correct 是 对 正确 真".split())
_NO = frozenset("no false incorrect 否 错 错误 假 不是 不对 不正确".split())
_ANSWER_YES = _YES | frozenset("y t yeah yep 是的 对的 没错 正确的".split())
_ANSWER_NO = _NO | frozenset("n f nope untrue wrong 不 错的 错误的 不是的 不对的 不成立".split())
_FIRST_WORD = re.compile(r"(?s)([A-Za-z]+|[\u4e00-\u9fff]{1,4})\s?(?:[,;:.!，。；：！—-]\s?(.*))?")
# "该说法正确" judges the statement that was given.
_STATEMENT = re.compile(
    r"(?i)^(?:indeed|of course|well|so|thus|hence|therefore),?\s|^(?:(?:the|this|that) (?:statement"
    r"|claim|assertion|proposition|answer) is|it is|that is)\s"
    r"|^(?:该|这个?|此|本|题目|上述|以上)?(?:说法|命题|判断|结论|陈述|叙述|句话)(?:是|为)?"
)
_DENIAL = re.compile(r"(?i)not (?:true|correct|right|the case)")
_CONDITION = re.compile(rf"(?i)(?:but )?(?:only )?{any_of('conditions')}")
_TURN, _OPEN, _YES_WORDS, _NO_WORDS = map(
    pattern_of, ("turns", "open_questions", "yes_words", "no_words")
)
# "At first I would say no, but there is one: yes." The last clause gives the verdict.
_CONCLUDED = re.compile(
    r"(?is).{0,300}(?::|—|–| - |, so|\bso)\s?(?P<word>yes|no|true|false)(?:, (?:it|they|he|she|we"
    r"|there) \w+)?"
)
_ASKS_WHETHER = re.compile(
    r"(?is)(?:.*[.\n] )?(?:is|are|was|were|does|do|did|can|could|has|have|will|would)\b.*\?"
)


def is_yes_no(reference: str, question: str = "") -> bool:
    # NO is also a gas.
    is_gas = reference.isupper() and is_chemical(reference, question)
    return _reference_side(reference) is not None and not is_gas


def equal_yes_no(reference: str, answer: str, ask: Ask) -> bool:
    side = _answer_side(answer, ask.question)
    return side is not None and side == _reference_side(reference)


def _reference_side(text: str) -> bool | None:
    word = plain(text[:40]).casefold().strip(" .!！,，")
    return word in _YES if word in _YES | _NO else None


def _answer_side(text: str, question: str) -> bool | None:
    """What an answer says; None for neither or both. A reason may follow a comma or a point."""
    text = _STATEMENT.sub("", plain(text[:400]).replace("**", ""), count=1)
    if _DENIAL.fullmatch(text):
        return False
    # The last clause decides: "no problem, so yes".
    if concluded := _CONCLUDED.fullmatch(text):
        text = "" if _OPEN.search(text) else concluded["word"]
    match = _FIRST_WORD.fullmatch(text)
    if not match:
        return _affirms(text, question)
    word, reason = match[1].casefold(), match[2] or ""
    denies, affirms = _NO_WORDS.search(reason), _YES_WORDS.search(reason)
    # A reason that turns, or a condition, takes the reply back; so does one that says the opposite.
    is_open = _TURN.search(reason) or _CONDITION.match(reason)
    is_open = is_open or (denies if word in _ANSWER_YES else affirms and not denies)
    return word in _ANSWER_YES if word in _ANSWER_YES | _ANSWER_NO and not is_open else None


def _affirms(text: str, question: str) -> bool | None:
    """What a sentence says that repeats the question: "97 is prime." """
    asked = Question.of(question)
    said = set(stems(_NO_WORDS.sub(" ", text)))
    # Every word that says something has to be of the question, else it says another thing.
    is_whole = said and len(text) <= 200 and said <= {*asked.stems}
    if not is_whole or not _ASKS_WHETHER.fullmatch(question.strip()) or _TURN.search(text):
        return None
    # What it is asked of may go unsaid, what is asked may not.
    if _OPEN.search(text) or " or " in question or not {*asked.stems[-2:]} & said:
        return None
    return not _NO_WORDS.search(text)
