"""Compares the members of lists, tuples, intervals and matrices, whatever kind they are of."""

import re

from rewards.rules.kinds.comparison import Ask
from rewards.rules.kinds.dates import equal_dates, is_date, read_date
from rewards.rules.kinds.expressions import equal_expressions, is_expression
from rewards.rules.kinds.quantities import equal_counts, equal_quantities, read_quantity
from rewards.rules.kinds.texts import ASKS_RATIO, equal_texts
from rewards.rules.reading.notation import named_value, plain, plain_words
from rewards.rules.reading.numbers import decimal_comma, number_literal, same_number, spelled_scale
from rewards.rules.reading.wording import pattern_of

_IN_BRACKETS = re.compile(r"^\(\s?([$€£¥]?\s?[0-9][0-9,.]*)\s?\)\s?(%?)$")
_REDUCED = pattern_of("reduced")
_FIGURE = re.compile(
    r"(?:\\(?:m?angle|triangle|overline|widehat)(?![a-z])|[∠△])\s?\{?\s?([A-Z]{1,4}|[0-9])\}?\s?="
)
_BRACED = re.compile(r"^\{([^{},]{1,40})\}$")
_ASKS_WHAT_PERCENT = pattern_of("asks_percent")
_RATIO = re.compile(r"^([0-9]{1,9})\s?(?::|\bto\b)\s?([0-9]{1,9})$")
_BASED = re.compile(
    r"0[bB](?P<binary>[01]{1,64})|0[xX](?P<hexa>[0-9A-Fa-f]{1,32})"
    r"|(?P<digits>[0-9A-Fa-f]{1,64})\s?_\s?\{?(?P<base>[0-9]{1,2})\}?"
)
_BASE_WORDS = {"binary": 2, "二进制": 2, "octal": 8, "八进制": 8, "hexadecimal": 16, "十六进制": 16}


def equal_members(reference: str, answer: str, ask: Ask) -> bool | None:
    """Compare two members by the kind of the reference; None where it takes sympy or pint."""
    if names_differ(reference, answer):
        return False
    if number_literal(reference) is not None:
        return equal_numbers(reference, answer, ask)
    # Expressions before dates and quantities: 5m is 5 times m until a question names a unit.
    if is_expression(reference):
        return equal_expressions(reference, answer, ask)
    if is_date(reference):
        return equal_dates(reference, answer, ask)
    if read_quantity(reference) is not None:
        return equal_quantities(reference, answer, ask)
    return equal_texts(reference, answer, ask)


def equal_numbers(reference: str, answer: str, ask: Ask) -> bool:
    """Compare a number with a number, in its base, or with what it counts or measures."""
    # {12} may be a set to other references, and is a group of TeX beside a number.
    answer = _BRACED.sub(r"\1", plain(answer))
    wanted, given = number_literal(reference), number_literal(answer)
    if wanted is None or wanted.is_percent:
        return equal_quantities(reference, answer, ask) is True
    # To "what percent?" 10 means 10%, so 1000% is not 10. A part of 1 may be meant as such.
    is_asked = abs(wanted.value) > 1 and _ASKS_WHAT_PERCENT.search(ask.question)
    if given and given.is_percent and is_asked:
        return equal_counts(reference, answer, ask.question)
    # 3:2 is 3/2 to a question for a ratio.
    if wanted.is_fraction and given is None and ASKS_RATIO.search(ask.question):
        given = number_literal(_RATIO.sub(r"\1/\2", plain(answer)))
    # A decimal comma is read only where a decimal is wanted: else it parts members of a list.
    if given is None and wanted.step:
        given = decimal_comma(answer)
    if given is not None and same_number(wanted, given, ask.question):
        # 2/4 is 1/2, unless to reduce it was the task.
        return given.is_reduced or not _REDUCED.search(ask.question)
    if equal_counts(reference, answer, ask.question):
        return True
    # 1101_2 and 0b1101 are 1101 where the question wants base 2.
    if not (based := _BASED.fullmatch(plain(answer))):
        return False
    base = int(based["base"] or (2 if based["binary"] else 16))
    names = "|".join(word for word, known in _BASE_WORDS.items() if known == base) or f"base {base}"
    is_asked = re.search(rf"base[- ]?_?\{{?{base}\b|(?i:\b(?:{names}))", ask.question)
    digits = based["binary"] or based["digits"] or based["hexa"]
    return bool(is_asked) and digits.casefold() == plain(reference).casefold()


def names_differ(reference: str, answer: str) -> bool:
    """Whether both are set equal to a letter, or to a figure, and to different ones."""
    names = named_value(reference)[0], named_value(answer)[0]
    figures = [_FIGURE.search(plain(text)) for text in (reference, answer)]
    if figures[0] and figures[1]:
        # The angle ABC is CBA.
        return sorted(figures[0][1]) != sorted(figures[1][1])
    return len(names[0]) == len(names[1]) == 1 and names[0] != names[1]


def equal_cells(reference: str, answer: str, ask: Ask) -> bool | None:
    """Cells of a table. Accountants write -5 as (5), and a cell says in which unit it is."""
    wanted, given = (
        number_literal(spelled_scale(_IN_BRACKETS.sub(r"-\1\2", plain(text))))
        for text in (reference, answer)
    )
    if wanted and given:
        return same_number(wanted, given)
    if wanted is None and read_quantity(reference):
        return equal_quantities(reference, answer, ask)
    if read_date(reference):
        return equal_dates(reference, answer, ask)
    return bool(plain_words(answer)) and plain_words(reference) == plain_words(answer)
