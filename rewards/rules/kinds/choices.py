"""Multiple choice: an answer may name the letter of an option, its text, or both if they agree.

The options are read from the question ("A) Paris  B) London").
"""

import re
from functools import lru_cache
from itertools import zip_longest

from rewards.rules.kinds.comparison import Ask
from rewards.rules.kinds.quantities import equal_quantities, read_quantity
from rewards.rules.reading.notation import opened, plain_words
from rewards.rules.reading.numbers import number_literal, same_number

MAX_CHOICE_CHARS = 300
LETTERS = "ABCDEFGHIJ"

_MARKS = (
    re.compile(
        r"(?<![A-Za-z0-9.])(?:[(（\[]\s?([A-Ja-j])\s?[)）\]]|([A-J])\s?[).:：、．,，](?![A-Za-z]\.))"
    ),
    re.compile(r"(?m)(?:^|(?<=\s))([a-j])[).](?=\s)"),
)
_LETTER = (
    r"(?:(?:the )?(?:correct |best )?(?:option|choice|answer|letter|选项|选择?)\s?(?:is )?[:：]?"
    r"\s?)?[$]?[(（\[]?\s?(?P<letter>[A-Ja-j])\s?"
)
_LETTER_ONLY = re.compile(
    rf"(?i){_LETTER}[)）\].:：、．]?(?:\s?选项|项)?(?P<text>)(?:\s?(?:is (?:the )?(?:correct|right)"
    r"(?: (?:answer|option|choice|one))?|正确|是正确的|是对的))?"
)
_LETTER_AND_TEXT = re.compile(
    rf"(?is){_LETTER}(?:[)）\].:：、．,，-]|\s-|\s(?=[(（]))\s?(?P<text>.{{1,200}})"
)
_TEXT_AND_LETTER = re.compile(
    r"(?s)(?P<text>.{1,200}?)\s?[(（\[]\s?(?:option |choice |选项)?(?P<letter>[A-J])\s?[)）\]]"
)
# A letter that a sentence calls an option, if it does not say which option is wrong.
_CALLED = re.compile(
    r"(?<![Nn]ot )(?<!n't )(?<!不是)(?<!不选)(?:\b(?:option|choice)\s|选项)[(（]?([A-J])"
    r"(?![A-Za-z])[)）]?(?!\s?(?:is (?:in|not|wrong|too)|不|错|项不))"
)
_SEVERAL = re.compile(
    r"[(（]?[A-J][)）]?(?:\s?(?:,|，|、|;|&|/|\band\b|和|与|\s)\s?(?:and\s)?[(（]?[A-J][)）]?)+"
    r"|(?:[(（][A-J][)）]\s?){2,8}|[A-J]{2,8}"
)
_ASKS_SEVERAL = re.compile(r"(?i)\b(?:select|choose|all|statements|options|letters)\b|选")
_ANOTHER_LETTER = re.compile(r"(?:^|\s|[(（])[A-J](?:[)）.:,]|$|\s+(?:and|or|和|或))")


@lru_cache(maxsize=64)
def read_options(question: str) -> dict[str, str]:
    """The options of a question by letter, from A on without a gap; empty if there are not two."""
    for form in _MARKS:
        marks: list[re.Match[str]] = []
        for mark in form.finditer(question):
            letter = next(group for group in mark.groups() if group).upper()
            if letter == LETTERS[len(marks) : len(marks) + 1]:
                marks.append(mark)
        ends = [mark.start() for mark in marks[1:]]
        options = [question[mark.end() : end] for mark, end in zip_longest(marks, ends)]
        # The last one ends with its line.
        options[-1:] = [option.strip().partition("\n")[0] for option in options[-1:]]
        options = [text.strip(" \t\r\n,;，；。").removesuffix(".")[:300] for text in options]
        if len(options) > 1 and all(options):
            return dict(zip(LETTERS, options, strict=False))
    return {}


def is_choice(reference: str, question: str) -> bool:
    """Whether a reference is a letter, letters, or a letter with the text of its option."""
    text, options = opened(reference), read_options(question)
    if len(text) == 1 and text in LETTERS:
        return True
    if len(text) > MAX_CHOICE_CHARS:
        return False
    letters = _letters(text)
    if len(letters) > 1:
        is_asked = not options and bool(_ASKS_SEVERAL.search(question))
        return is_asked or set(letters) <= set(options)
    # J. K. Rowling is a name.
    given = "" if re.match(r"[A-Z]\.\s?[A-Z]\.", text) else _letter_of(text)
    return given != "" and (not options or given in options)


def is_letters(reference: str, question: str = "") -> bool:
    """Whether a reference that a task calls a choice can be one."""
    text = opened(reference)
    return len(text) <= MAX_CHOICE_CHARS and bool(_letters(text) or _letter_of(text))


def equal_choices(reference: str, answer: str, ask: Ask) -> bool:
    reference, answer = opened(reference), opened(answer)
    wanted, letter = _letters(reference), _letter_of(reference)
    # Several letters: all of them and no other, in any order.
    if len(wanted) > 1:
        return sorted(wanted) == sorted(set(_letters(answer)))
    if not letter or len(answer) > MAX_CHOICE_CHARS:
        return False
    own = _LETTER_AND_TEXT.fullmatch(reference)
    text = read_options(ask.question).get(letter) or (own["text"] if own else "")
    if match := _named(answer):
        named, rest = match["letter"], match["text"]
        if not rest:
            # "a" alone may be an article, "A" cannot.
            return named.upper() == letter and not (named == answer and answer in "ai")
        if named.isupper() or "(" in answer or ")" in answer:
            is_right_text = same_text(text, rest) if text else not _ANOTHER_LETTER.search(rest)
            return named.upper() == letter and is_right_text
    # Only a letter that the sentence calls an option; "A" and "I" are also words.
    if called := _CALLED.findall(answer):
        return called[-1] == letter
    return bool(text) and same_text(text, answer)


def chosen_text(answer: str, question: str) -> str:
    """The text of the option that an answer names by letter; nothing if it names none, or another
    text with it."""
    options = read_options(question)
    match = _named(opened(answer)) if options else None
    text = options.get(match["letter"].upper(), "") if match else ""
    is_named = match and text and (not match["text"] or same_text(text, match["text"]))
    return text if is_named else ""


def contradicts_option(answer: str, question: str) -> bool:
    """Whether an answer gives a letter together with the text of another option."""
    options = read_options(question)
    match = _named(opened(answer)) if options else None
    if not match or not match["text"]:
        return False
    given = [letter for letter, text in options.items() if same_text(text, match["text"])]
    return bool(given) and match["letter"].upper() in options.keys() - given


def same_text(option: str, text: str) -> bool:
    """Whether a text is that of an option: the same words, number or quantity."""
    if plain_words(option) == plain_words(text):
        return True
    wanted, given = number_literal(option), number_literal(text)
    if wanted and given:
        return same_number(wanted, given)
    return read_quantity(option) is not None and equal_quantities(option, text, Ask()) is True


def _named(answer: str) -> re.Match[str] | None:
    """The letter that an answer names, and the text beside it."""
    is_short = len(answer) <= MAX_CHOICE_CHARS
    forms = (_LETTER_ONLY, _LETTER_AND_TEXT, _TEXT_AND_LETTER) if is_short else ()
    return next((match for form in forms if (match := form.fullmatch(answer))), None)


def _letter_of(text: str) -> str:
    if match := _LETTER_ONLY.fullmatch(text):
        letter = match["letter"]
        return letter.upper() if letter.isupper() or letter != text else ""
    match = re.match(r"[(（\[]?([A-J])[)）\].:：、．]\s?\S", text)
    return match[1] if match else ""


def _letters(text: str) -> list[str]:
    return re.findall(r"[A-J]", text) if _SEVERAL.fullmatch(text) else []
