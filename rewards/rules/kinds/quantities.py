"""Numbers with a unit: amounts of money, percentages, lengths, counts of things.

Equal units are compared at once; different ones are converted by pint, which takes a second to
load and so runs in a worker. A unit may be left out only where the question asks for it ("in
metres", "how many litres"), and always for money and degrees, whose signs are dropped as a rule. A
percentage needs its sign unless the question speaks of per cent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from rewards.rules.reading.notation import plain, plain_value
from rewards.rules.reading.number_literals import (
    NumberLiteral,
    number_literal,
    same_number,
    spelled_scale,
)
from rewards.rules.reading.number_words import CHINESE_NUMERAL
from rewards.rules.reading.units import (
    CURRENCIES,
    Unit,
    currency_of,
    is_money,
    read_unit,
    spellings,
)

MAX_QUANTITY_CHARS = 120
MIN_CONVERTED_DIGITS = 3
"""An answer in another unit may be rounded to so many significant digits."""

_SIGN = r"US\$|HK\$|[$€£¥₹₩]|USD|EUR|GBP|CNY|RMB|JPY|HKD"
_MONEY = re.compile(rf"(?P<minus>-?)\s?(?:{_SIGN})\s?(?P<amount>.{{1,60}})")
_SCALES = r"万亿|万|亿|(?:hundred|thousand|million|billion|trillion)(?![a-zA-Z])"
_NUMBER = (
    r"[+-]?\s?(?:\\[dt]?frac\s?\{[0-9]{1,12}\}\s?\{[0-9]{1,12}\}|\.[0-9]+"
    r"|[0-9][0-9., ]{0,40}(?:\s?/\s?[0-9]{1,12})?)"
    r"(?:\s?(?:\\times|\\cdot|\*|x)\s{0,2}10\s?\^\s?\{?[+-]?[0-9]{1,3}\}?|e[+-]?[0-9]{1,3})?"
)
_DIGITS_FIRST = re.compile(
    rf"(?P<number>(?:\\approx|≈|~|约|approximately|about)?\s?{_NUMBER}(?:\s?(?:{_SCALES}))?)"
    rf"\s?-?(?P<unit>[^0-9\s.,+-].{{0,60}})",
    re.IGNORECASE,
)
_CHINESE_FIRST = re.compile(
    rf"(?P<number>[{CHINESE_NUMERAL}点]{{1,16}}?)(?P<unit>[^{CHINESE_NUMERAL}].{{0,20}})"
)
_COMPOUND = re.compile(
    r"(?P<large>[0-9]{1,9})\s?(?P<large_unit>[^0-9\s,]{1,12}?),?\s?(?:and\s|又|零)?"
    r"(?P<small>[0-9]{1,9}(?:\.[0-9]{1,9})?)\s?(?P<small_unit>[^0-9\s]{1,12})"
)
_SMALLER = {
    ("week", "day"): 7,
    ("day", "hour"): 24,
    ("hour", "minute"): 60,
    ("minute", "second"): 60,
    ("year", "month"): 12,
    ("foot", "inch"): 12,
    ("pound", "ounce"): 16,
    ("kilometer", "meter"): 1000,
    ("meter", "centimeter"): 100,
    ("kilogram", "gram"): 1000,
    ("CNY", "cny_jiao"): 10,
}
_COUNTED = re.compile(
    r"(?:[个只本人次张件辆条头位名块支棵朵颗瓶箱种页道岁](?:[\u4e00-\u9fff]{1,4})?)"
    r"|[a-z]{2,20}(?: [a-z]{2,20})?|(?:[a-z]{3,20} )?[a-z]{2,20} of [a-z]{3,20}"
)
# 5ab is a product, 5 cm and 5pm are not.
_PRODUCT = re.compile(r".*[0-9](?!(?:am|pm|pcs|pts)\b)[a-z]{2,3}", re.DOTALL)
# No unit and no counted thing: these words change the number or compare it.
_NOT_COUNTED = frozenset(
    [
        "more",
        "less",
        "fewer",
        "than",
        "times",
        "and",
        "or",
        "of",
        "to",
        "plus",
        "minus",
        "percent",
        "half",
        "squared",
        "cubed",
        "hundred",
        "thousand",
        "million",
        "billion",
        "dozen",
        "dozens",
        "pairs",
        "over",
        "under",
        "between",
        "above",
        "below",
        "at",
        "about",
        "the",
        "a",
        "an",
        "not",
        "is",
        "no",
        "but",
        "if",
        "by",
        "point",
        "only",
        "right",
        "wrong",
        "correct",
        "incorrect",
        "th",
        "st",
        "nd",
        "rd",
        "pi",
        "sqrt",
        "mod",
        "remainder",
        "ish",
    ]
)
_FILLERS = frozenset(
    [
        "left",
        "total",
        "altogether",
        "remaining",
        "in",
        "all",
        "now",
        "old",
        "each",
        "together",
        "away",
        "there",
        "tall",
        "long",
        "wide",
        "high",
        "deep",
        "thick",
        "heavy",
        "apart",
        "different",
        "distinct",
        "possible",
    ]
)
_VERB = r"(?:is|are|was|were|do|does|did|can|will|would|could|should|has|have|had)\b"
_HOW_MANY = re.compile(
    rf"\bhow many (?!{_VERB}|left\b)(\w+(?: (?!{_VERB})\w+){{0,3}})", re.IGNORECASE
)
_LEFT = re.compile(r"\b(?:left|remaining)\b")
_ASKS_LEFT = re.compile(
    r"\b(?:left|remain\w*|now|still|rest|over|have|has|after)\b|剩", re.IGNORECASE
)
_PERCENT: Unit = (("percent", 1),)
_ASKS_PERCENT = re.compile(r"per\s?cent|%|百分", re.IGNORECASE)
_ASKS = (
    r"(?:\bin|\bhow many|\bhow much|\bnumber of|\bunits?\s?[:=]?|\bas|\(|（"
    r"|以|多少|几|单位\s?[:：是为]?)\s?"
)


@dataclass(frozen=True)
class Quantity:
    number: NumberLiteral
    unit: Unit
    """Empty where the thing is counted, not measured."""
    noun: str = ""
    """What is counted, such as `apples`."""


def read_quantity(text: str) -> Quantity | None:
    """Return the number with a unit that the text is, or None. Costs microseconds."""
    text = plain_value(text) if len(text) <= 4 * MAX_QUANTITY_CHARS else ""
    if not 0 < len(text) <= MAX_QUANTITY_CHARS:
        return None
    if money := _read_money(text):
        return money
    if compound := _read_compound(text):
        return compound
    percent = number_literal(text)
    if percent and percent.is_percent:
        return Quantity(percent, _PERCENT)
    for number, unit in _divisions(text):
        literal = number_literal(number)
        found = _with_unit(literal, unit) if literal and not literal.is_percent else None
        if found and not (found.noun and _PRODUCT.fullmatch(text)):
            return found
    return None


def is_quantity(reference: str) -> bool:
    return read_quantity(reference) is not None


def is_percentage(reference: str) -> bool:
    quantity = read_quantity(reference)
    return quantity is not None and quantity.unit == _PERCENT


def quick_quantity(reference: str, answer: str, question: str) -> bool | None:
    """None where two units have to be converted."""
    wanted = read_quantity(reference)
    if wanted is None:
        return False
    given = read_quantity(answer)
    if given is None:
        bare = number_literal(answer)
        return bare is not None and _may_lack_unit(wanted, bare, question)
    if given.noun or wanted.noun:
        is_same_thing = (
            _singular(given.noun) == _singular(wanted.noun) and given.unit == wanted.unit
        )
        return is_same_thing and same_number(wanted.number, given.number)
    units = {wanted.unit, given.unit}
    pounds: set[Unit] = {(("pound", 1),), (("GBP", 1),)}
    if len(units) == 1 or units == pounds:
        return same_number(wanted.number, given.number)
    return None


def convert_quantity(reference: str, answer: str) -> bool:
    """Whether both are the same amount in different units. Loads pint: for workers only."""
    wanted, given = read_quantity(reference), read_quantity(answer)
    if wanted is None or given is None:
        return False
    exact = _converted(wanted.number.value, wanted.unit, given.unit)
    if exact is None:
        return False
    difference = abs(exact - given.number.value)
    if difference <= abs(exact) * Fraction(1, 10**12):
        return True
    is_rounded = given.number.step and given.number.num_digits >= MIN_CONVERTED_DIGITS
    return bool(is_rounded) and difference <= given.number.step / 2


def quick_counted(reference: str, answer: str, question: str) -> bool:
    """Whether an answer is the bare number of the reference with the thing that is counted.

    "12 apples" is 12 where the question speaks of apples, "$12" always; "12 km" is 12 unless the
    question asks for another unit.
    """
    wanted, given = number_literal(reference), read_quantity(answer)
    if wanted is None or given is None:
        return False
    if given.unit == _PERCENT:
        may_differ = bool(_ASKS_PERCENT.search(question))
        hundredfold = NumberLiteral(given.number.value * 100, given.number.is_fraction)
        return may_differ and wanted.value == hundredfold.value
    if not same_number(wanted, given.number):
        return False
    asked, counted = _words(question), _counted_in(question)
    if question and _LEFT.search(given.noun) and not _ASKS_LEFT.search(question):
        # What is left is another number than what there was.
        return False
    if given.noun:
        words = [_singular(word) for word in given.noun.split() if word not in _FILLERS | {"of"}]
        is_asked = not counted or not words or any(word in counted for word in words)
        is_known = all(word in asked or word in question for word in words)
        return not question or (is_asked and is_known)
    return (
        not question
        or is_money(given.unit)
        or _mentions(question, given.unit)
        or not (counted or _units_in(question))
    )


def _read_money(text: str) -> Quantity | None:
    match = _MONEY.fullmatch(text)
    if not match:
        return None
    sign = text[len(match["minus"]) : match.start("amount")].strip()
    amount, unit = spelled_scale(match["amount"].strip()), currency_of(sign)
    literal = number_literal(match["minus"] + amount)
    if literal is None:
        # "$12 dollars", "$12 per hour"
        inner = _DIGITS_FIRST.fullmatch(match["minus"] + amount)
        literal = number_literal(inner["number"]) if inner else None
        rest = inner["unit"].strip() if inner else ""
        if unit and literal and rest.startswith(("/", "per ")):
            compound = read_unit(f"{sign} {rest}")
            return Quantity(literal, compound) if compound else None
        if not unit or read_unit(rest) != ((unit, 1),):
            return None
    return Quantity(literal, ((unit, 1),)) if unit and literal and not literal.is_percent else None


def _read_compound(text: str) -> Quantity | None:
    """2 hours 30 minutes, 5 ft 3 in: an amount in the smaller of two units."""
    match = _COMPOUND.fullmatch(text)
    units = [read_unit(match[key]) for key in ("large_unit", "small_unit")] if match else []
    if not match or not all(units):
        return None
    large, small_name = (unit[0][0] for unit in units if unit)
    factor = _SMALLER.get((large, small_name))
    small = number_literal(match["small"])
    if not factor or not small or not 0 <= small.value < factor:
        return None
    value = int(match["large"]) * factor + small.value
    return Quantity(NumberLiteral(value, is_fraction=False), ((small_name, 1),))


def _divisions(text: str) -> list[tuple[str, str]]:
    """Where the number may end and the unit begin."""
    if match := _DIGITS_FIRST.fullmatch(text):
        return [(match["number"].strip(" ,"), match["unit"].strip())]
    if match := _CHINESE_FIRST.fullmatch(text):
        return [(match["number"], match["unit"])]
    words = text.split()
    ends = range(min(len(words) - 1, 8), 0, -1)
    return [(" ".join(words[:end]), " ".join(words[end:])) for end in ends]


def _with_unit(number: NumberLiteral, text: str) -> Quantity | None:
    if unit := read_unit(text):
        return Quantity(number, unit)
    noun = " ".join(plain(text).split()).removesuffix(" of them")
    head, _, last = noun.rpartition(" ")
    # "12 km left" is a length.
    if last in _FILLERS and (unit := read_unit(head)):
        return Quantity(number, unit)
    words = set(noun.replace(" of ", " ").split())
    if not _COUNTED.fullmatch(noun) or _NOT_COUNTED & words:
        return None
    # "2 litres of milk" is a volume.
    measure, of, _ = noun.partition(" of ")
    if of and (unit := read_unit(measure)):
        return Quantity(number, unit)
    return Quantity(number, (), noun)


def _may_lack_unit(wanted: Quantity, bare: NumberLiteral, question: str) -> bool:
    if wanted.unit == _PERCENT:
        written = wanted.number.value * 100
        if not bare.is_percent and _ASKS_PERCENT.search(question) and bare.value == written:
            return True
        return same_number(wanted.number, bare)
    if not same_number(wanted.number, bare):
        return False
    if wanted.noun:
        words = [_singular(word) for word in wanted.noun.split() if word != "of"]
        return bool(question) and all(
            word in _words(question) or word in question for word in words
        )
    if is_money(wanted.unit) and wanted.unit[0][0] in ("USD", "EUR", "GBP", "CNY", "JPY"):
        return True
    return wanted.unit == (("degree", 1),) or _asks_for(question, wanted.unit)


def _asks_for(question: str, unit: Unit) -> bool:
    """Whether the question says in which unit it wants the answer."""
    if not question:
        return False
    names = spellings(unit)
    if not names:
        return any(read_unit(phrase) == unit for phrase in _unit_phrases(question))
    aliases = "|".join(re.escape(name) + "s?" for name in sorted(names, key=len, reverse=True))
    return bool(
        re.search(rf"{_ASKS}(?:the )?(?:{aliases})(?![a-zA-Z/^²³])", question, re.IGNORECASE)
    )


def _unit_phrases(question: str) -> list[str]:
    """What follows `in` and its like: one to four words each."""
    phrases: list[str] = []
    for match in re.finditer(
        rf"{_ASKS}([^\s?.,;:)）]{{1,20}}(?: [^\s?.,;:)）]{{1,20}}){{0,3}})", question
    ):
        words = match[1].split()
        phrases += [plain(" ".join(words[:end])) for end in range(1, len(words) + 1)]
    return phrases[:64]


def _mentions(question: str, unit: Unit) -> bool:
    words = question.replace("(", " ").replace(")", " ").split()
    tokens = {plain(word.strip("?,;:。，？")) for word in words[:400]}
    return any(read_unit(token) == unit for token in tokens) or any(
        not alias.isascii() and alias in question for alias in spellings(unit)
    )


def _units_in(question: str) -> bool:
    """Whether a question speaks of any unit; short words such as `in` are none here."""
    words = (word.strip("?,;:.()，。？") for word in question.split()[:400])
    return any(
        len(word) > 1 and word not in ("in", "as", "us") and read_unit(word) for word in words
    )


def _words(text: str) -> set[str]:
    return {_singular(word) for word in re.findall(r"[A-Za-z]{1,30}", text[:4000].casefold())}


def _counted_in(question: str) -> set[str]:
    """The words for what a question wants counted; none where it leaves that to what is before."""
    asked = _HOW_MANY.findall(question[:4000])
    return _words(asked[-1]) if asked else set()


def _singular(noun: str) -> str:
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun if noun.endswith("ss") else noun.removesuffix("s")


def _converted(value: Fraction, source: Unit, target: Unit) -> Fraction | None:
    registry = _registry()
    from pint.errors import DimensionalityError

    try:
        there = registry.Quantity(value, registry.Unit(_expression(source)))
        return Fraction(there.to(_expression(target)).magnitude)
    except DimensionalityError:
        return None


def _expression(unit: Unit) -> str:
    return " * ".join(f"{name} ** {power}" for name, power in unit)


@cache
def _registry() -> Any:
    """pint's units and our currencies; one currency is no amount of another."""
    import pint

    registry = pint.UnitRegistry(
        non_int_type=Fraction,  # pyright: ignore[reportArgumentType]  its documented use
    )
    for name in (name for name in CURRENCIES if name.isupper()):
        registry.define(f"{name} = [money_{name}]")
    registry.define("usd_cent = USD / 100")
    registry.define("gbp_penny = GBP / 100")
    registry.define("cny_jiao = CNY / 10")
    registry.define("jin = gram * 500")
    return registry
