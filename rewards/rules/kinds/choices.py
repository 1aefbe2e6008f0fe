"""Multiple choice: an answer may name the letter of an option, its text, or both if they agree.

The options are read from the question ("A) Paris  B) London").
"""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.rules.kinds.comparison import Ask
from rewards.rules.kinds.quantities import equal_quantities, read_quantity
from rewards.rules.reading.notation import INNER_TEXT, plain, plain_words
from rewards.rules.reading.numbers import number_literal, same_number

MAX_QUESTION_CHARS = 20_000
MAX_CHOICE_CHARS = 300
LETTERS = "ABCDEFGHIJ"

_MARK = re.compile(
    r"(?<![A-Za-z0-9.])(?:[(（\[]\s?([A-Ja-j])\s?[)）\]]|([A-J])\s?[).:：、．,，](?![A-Za-z]\.))"
)
_LOWER_MARK = re.compile(r"(?:^|(?<=\s))([a-j])[).](?=\s)", re.MULTILINE)
_LEAD = (
    r"(?:(?:the )?(?:correct |best )?(?:option|choice|answer|letter|选项"
    r"|选择?)\s?(?:is )?[:：]?\s?)?"
)
_LETTER = r"[$]?[(（\[]?\s?(?P<letter>[A-Ja-j])\s?"
_LETTER_ONLY = re.compile(
    rf"{_LEAD}{_LETTER}[)）\].:：、．]?(?:\s?选项|项)?"
    r"(?:\s?(?:is (?:the )?(?:correct|right)"
    r"(?: (?:answer|option|choice|one))?|正确|是正确的|是对的))?",
    re.IGNORECASE,
)
_LETTER_AND_TEXT = re.compile(
    rf"{_LEAD}{_LETTER}(?:[)）\].:：、．,，-]|\s-|\s(?=[(（]))\s?(?P<text>.{{1,200}})",
    re.IGNORECASE | re.DOTALL,
)
_TEXT_AND_LETTER = re.compile(
    r"(?P<text>.{1,200}?)\s?[(（\[]\s?(?:option |choice |选项)?(?P<letter>[A-J])\s?[)）\]]",
    re.DOTALL,
)
# A letter that a sentence calls an option, if it does not say which option is wrong.
_CALLED = re.compile(
    r"(?<![Nn]ot )(?<!n't )(?<!不是)(?<!不选)(?:\b(?:option|choice)\s"
    r"|选项)[(（]?([A-J])(?![A-Za-z])[)）]?"
    r"(?!\s?(?:is (?:in|not|wrong|too)|不|错|项不))"
)
_SEVERAL = re.compile(
    r"[(（]?[A-J][)）]?(?:\s?(?:,|，|、|;|&|/|\band\b|和|与|\s)\s?(?:and\s)?[(（]?[A-J][)）]?)+|(?:[(（][A-J][)）]\s?){2,8}|[A-J]{2,8}"
)
_ASKS_SEVERAL = re.compile(
    r"\b(?:select|choose|all|statements|options|letters)\b|选", re.IGNORECASE
)
_ANOTHER_LETTER = re.compile(r"(?:^|\s|[(（])[A-J](?:[)）.:,]|$|\s+(?:and|or|和|或))")
_REMARK = re.compile(r"\([^()]{1,80}\)")
_DENIAL = re.compile(r"\b(?:not|no|isnt|instead|rather|than|or|wrong|except)\b|不|非")


@lru_cache(maxsize=64)
def read_options(question: str) -> dict[str, str]:
    """The options of a question by letter, from A on without a gap; empty if there are not two."""
    text = question[:MAX_QUESTION_CHARS]
    for form in (_MARK, _LOWER_MARK):
        marks: list[re.Match[str]] = []
        for mark in form.finditer(text):
            letter = next(group for group in mark.groups() if group).upper()
            if len(marks) < len(LETTERS) and letter == LETTERS[len(marks)]:
                marks.append(mark)
        options: dict[str, str] = {}
        for index, mark in enumerate(marks):
            is_last = index == len(marks) - 1
            option = text[mark.end() : None if is_last else marks[index + 1].start()].strip()
            option = option.partition("\n")[0] if is_last else option
            option = option.strip(" \t\r\n,;，；。").removesuffix(".")
            options[LETTERS[index]] = option[:MAX_CHOICE_CHARS]
        if len(options) > 1 and all(options.values()):
            return options
    return {}


def is_choice(reference: str, question: str) -> bool:
    """Whether a reference is a letter, letters, or a letter with the text of its option."""
    text = _plain(reference)
    options = read_options(question)
    if len(text) == 1 and text in LETTERS:
        return True
    if len(text) > MAX_CHOICE_CHARS:
        return False
    letters = _letters(text)
    if letters and len(letters) > 1:
        is_asked = not options and bool(_ASKS_SEVERAL.search(question[:MAX_QUESTION_CHARS]))
        return is_asked or set(letters) <= set(options)
    # J. K. Rowling is a name.
    given = None if re.match(r"[A-Z]\.\s?[A-Z]\.", text) else _letter_of(text)
    return given is not None and (not options or given in options)


def is_letters(reference: str, question: str = "") -> bool:
    """Whether a reference that a task calls a choice can be one."""
    text = _plain(reference)
    return len(text) <= MAX_CHOICE_CHARS and bool(_letters(text) or _letter_of(text))


def equal_choices(reference: str, answer: str, ask: Ask) -> bool:
    options = read_options(ask.question)
    reference, answer = _plain(reference), _plain(answer)
    wanted, letter = _letters(reference), _letter_of(reference)
    # Several letters: all of them and no other, in any order.
    if wanted and len(wanted) > 1:
        return sorted(wanted) == sorted(set(_letters(answer) or ()))
    if letter is None or len(answer) > MAX_CHOICE_CHARS:
        return False
    if match := _LETTER_ONLY.fullmatch(answer):
        # "a" alone may be an article, "A" cannot.
        is_article = match["letter"] == answer and answer in "ai"
        return match["letter"].upper() == letter and not is_article
    own = _LETTER_AND_TEXT.fullmatch(reference)
    text = options.get(letter) or (own["text"] if own else "")
    for form in (_LETTER_AND_TEXT, _TEXT_AND_LETTER):
        match = form.fullmatch(answer)
        if match and (match["letter"].isupper() or "(" in answer or ")" in answer):
            rest = match["text"]
            is_right_text = _gives(text, rest) if text else not _ANOTHER_LETTER.search(rest)
            return match["letter"].upper() == letter and is_right_text
    # Only a letter that the sentence calls an option; "A" and "I" are also words.
    if called := _CALLED.findall(answer):
        return called[-1] == letter
    return bool(text) and same_text(text, answer)


def chosen_text(answer: str, question: str) -> str | None:
    """The text of the option that an answer names by letter; None if it names none, or another
    text with it."""
    options = read_options(question)
    answer = _plain(answer) if len(answer) <= MAX_CHOICE_CHARS else ""
    if not options or not answer:
        return None
    if match := _LETTER_ONLY.fullmatch(answer):
        return options.get(match["letter"].upper())
    match = _LETTER_AND_TEXT.fullmatch(answer) or _TEXT_AND_LETTER.fullmatch(answer)
    text = options.get(match["letter"].upper()) if match else None
    return text if match and text and same_text(text, match["text"]) else None


def contradicts_option(answer: str, question: str) -> bool:
    """Whether an answer gives a letter together with the text of another option."""
    options = read_options(question)
    match = _LETTER_AND_TEXT.fullmatch(_plain(answer)) if len(answer) <= MAX_CHOICE_CHARS else None
    text = options.get(match["letter"].upper()) if match else None
    if not match or text is None:
        return False
    is_option = any(same_text(option, match["text"]) for option in options.values())
    return is_option and not same_text(text, match["text"])


def same_text(option: str, text: str) -> bool:
    """Whether a text is that of an option: the same words, number or quantity."""
    if plain_words(option) == plain_words(text):
        return True
    wanted, given = number_literal(option), number_literal(text)
    if wanted and given:
        return same_number(wanted, given)
    return read_quantity(option) is not None and equal_quantities(option, text, Ask()) is True


def _gives(option: str, text: str) -> bool:
    """Whether a text is an option's, or a remark in brackets that names it: "(the 13th one)"."""
    if same_text(option, text):
        return True
    remark = plain_words(text) if _REMARK.fullmatch(text) else ""
    return f" {plain_words(option)} " in f" {remark} " and not _DENIAL.search(remark)


def _plain(text: str) -> str:
    return plain(INNER_TEXT.sub(r"\1", plain(text)))


def _letter_of(text: str) -> str | None:
    if match := _LETTER_ONLY.fullmatch(text):
        letter = match["letter"]
        return letter.upper() if letter.isupper() or letter != text else None
    match = re.match(r"[(（\[]?([A-J])[)）\].:：、．]\s?\S", text)
    return match[1] if match else None


def _letters(text: str) -> list[str] | None:
    if len(text) <= 60 and _SEVERAL.fullmatch(text):
        return re.findall(r"[A-J]", text)
    return None
