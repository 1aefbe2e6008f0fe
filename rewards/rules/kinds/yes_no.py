"""Yes or no, true or false, 是 or 否, with or without the reason after it."""

from __future__ import annotations

import re

from rewards.rules.reading.notation import plain

_YES = frozenset(["yes", "true", "correct", "是", "对", "正确", "真"])
_NO = frozenset(["no", "false", "incorrect", "否", "错", "错误", "假", "不是", "不对", "不正确"])
_ANSWER_YES = _YES | frozenset(["y", "t", "yeah", "yep", "是的", "对的", "没错", "正确的"])
_ANSWER_NO = _NO | frozenset(
    ["n", "f", "nope", "untrue", "wrong", "不", "错的", "错误的", "不是的", "不对的", "不成立"]
)
_FIRST_WORD = re.compile(
    r"([A-Za-z]+|[\u4e00-\u9fff]{1,4})\s?(?:[,;:.!，。；：！—-]\s?(.*))?", re.DOTALL
)
# "该说法正确" judges the statement that was given.
_STATEMENT = re.compile(
    r"(?:该|这个?|此|本|题目|上述|以上)?(?:说法|命题|判断|结论|陈述|叙述|句话)(?:是|为)?"
)
_DENIAL = re.compile(r"not (?:true|correct|right|the case)", re.IGNORECASE)
_CONDITION = re.compile(
    r"(?:but )?(?:only )?(?:if|when|unless|provided|except|as long as|for)\b|如果|若|只要|除非",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"\b(?:but|however|although|actually|wait|unless|sometimes|partly|depends|not sure|maybe)\b"
    r"|但|不过|然而",
    re.IGNORECASE,
)
# "At first I would say no, but there is one: yes." The last clause gives the verdict.
_CONCLUDED = re.compile(
    r"(?:.{0,300}[,;] )?(?:but |so )?(?P<clause>(?:there|it|this|that|they|both|all|the|he|she|we)"
    r" [^,;:]{1,60}): (?P<word>yes|no|true|false)",
    re.IGNORECASE | re.DOTALL,
)
_OPEN = re.compile(r"\b(?:if|unless|whether|or|either|only|other|question)\b", re.IGNORECASE)
_YES_WORDS = re.compile(r"\b(?:yes|true|correct)\b|是的|正确", re.IGNORECASE)
_NO_WORDS = re.compile(
    r"\b(?:no|not|false|incorrect|wrong|never)\b|n't\b|不|错|否|非", re.IGNORECASE
)


def is_yes_no(reference: str) -> bool:
    return _reference_side(reference) is not None


def quick_yes_no(reference: str, answer: str) -> bool:
    side = _answer_side(answer)
    return side is not None and side == _reference_side(reference)


def _reference_side(text: str) -> bool | None:
    word = plain(text[:40]).casefold().strip(" .!！,，")
    if word in _YES:
        return True
    return False if word in _NO else None


def _answer_side(text: str) -> bool | None:
    """What an answer says; None for neither or both. A reason may follow a comma or a point."""
    text = plain(text[:400]).replace("**", "")
    if stated := _STATEMENT.match(text):
        text = text[stated.end() :]
    if _DENIAL.fullmatch(text):
        return False
    if concluded := _CONCLUDED.fullmatch(text):
        is_open = _NO_WORDS.search(concluded["clause"]) or _OPEN.search(text)
        text = "" if is_open else concluded["word"]
    match = _FIRST_WORD.fullmatch(text)
    if not match:
        return None
    word, reason = match[1].casefold(), match[2] or ""
    if _TURN.search(reason) or _CONDITION.match(reason):
        return None
    if word in _ANSWER_YES:
        return None if _NO_WORDS.search(reason) else True
    if word in _ANSWER_NO:
        return None if _YES_WORDS.search(reason) and not _NO_WORDS.search(reason) else False
    return None
