"""Numbers with a unit: amounts of money, percentages, lengths, counts of things.

Equal units are compared at once; different ones are converted by pint, which takes a second to
load and so runs in a worker. A unit may be left out where the question names it ("in metres", "a
rod of 60 cm"), and always for money and degrees, whose signs are dropped as a rule. A percentage
needs its sign unless the question speaks of per cent.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from rewards.rules.kinds.comparison import Ask
from rewards.rules.reading.notation import FRACTION, plain, plain_value
from rewards.rules.reading.numbers import (
    CHINESE_NUMERAL,
    SCALE,
    TIMES_TEN,
    NumberLiteral,
    number_literal,
    same_number,
    spelled_scale,
)
from rewards.rules.reading.question import stem_of
from rewards.rules.reading.units import CURRENCIES, Unit, is_money, read_unit, spellings
from rewards.rules.reading.wording import any_of, words

MAX_QUANTITY_CHARS = 120
MIN_CONVERTED_DIGITS = 3
"""An answer in another unit may be rounded to so many significant digits."""

_MONEY = re.compile(
    r"(?P<minus>-?)\s?(?P<sign>US\$|HK\$|[$€£¥₹₩]|USD|EUR|GBP|CNY|RMB|JPY|HKD)\s?(?P<amount>.{1,60})"
)
_DIGITS_FIRST = re.compile(
    r"(?i)(?P<number>(?:\\approx|≈|~|约|approximately|about)?\s?[+-]?\s?"
    rf"(?:10\s?\^\s?\{{?[+-]?[0-9]{{1,3}}\}}?|{FRACTION}|\.[0-9]+"
    r"|[0-9][0-9., ]{0,40}(?:\s?/\s?[0-9]{1,12})?)"
    rf"(?:{TIMES_TEN}|e[+-]?[0-9]{{1,3}})?(?:\s?{SCALE})?)\s?-?(?P<unit>[^0-9\s.,+-].{{0,60}})"
)
_CHINESE_FIRST = re.compile(
    rf"(?P<number>[{CHINESE_NUMERAL}点]{{1,16}}?)(?P<unit>[^{CHINESE_NUMERAL}].{{0,20}})"
)
_RADIANS = re.compile(r"(.*pi.*?)\s?(?:rad|radians?|\\text\{ ?rad(?:ians)?\})")
_PI = re.compile(r"([0-9]*)\s?\\?pi(?![a-z])\s?")
_CLOCK_HOURS = re.compile(r"([0-9]{1,3})(?::([0-5][0-9]) ?(?:hours|hrs|h)|\s?h\s?([0-5]?[0-9]))")
_PART = re.compile(
    r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s?([^0-9\s,]{1,12}?)(?:,?\s?(?:and\s|又|零)?(?=[0-9])|$)"
)
_SMALLER = {
    **{("week", "day"): 7, ("day", "hour"): 24, ("hour", "minute"): 60, ("minute", "second"): 60},
    **{("year", "month"): 12, ("foot", "inch"): 12, ("pound", "ounce"): 16},
    **{("kilometer", "meter"): 1000, ("meter", "centimeter"): 100, ("kilogram", "gram"): 1000},
    ("CNY", "cny_jiao"): 10,
}
_COUNTED = re.compile(
    r"(?:[个只本人次张件辆条头位名块支棵朵颗瓶箱种页道岁](?:[\u4e00-\u9fff]{1,4})?)"
    r"|[a-z]{2,20}(?: [a-z]{2,20}){0,2}|(?:[a-z]{3,20} )?[a-z]{2,20} of [a-z]{3,20}"
)
# 5ab is a product, 5 cm and 5pm are not.
_PRODUCT = re.compile(r"(?s).*[0-9](?!(?:am|pm|pcs|pts)\b)[a-z]{2,3}")
_NOT_COUNTED = frozenset(words("not_counted"))
_FILLERS = frozenset(words("fillers"))
_NO_THING = any_of("not_asked")
_HOW_MANY = re.compile(rf"(?i)\bhow many (?!{_NO_THING})(\w+(?: (?!{_NO_THING})\w+){{0,3}})")
_FIXES_UNIT = re.compile(r"(?i)\b(?:in|how many|to)\s((?:[^\s]{1,24}\s?){1,4})")
_LEFT = re.compile(r"\b(?:left|remaining)\b")
_ASKS_LEFT = re.compile(r"(?i)\b(?:left|remain\w*|now|still|rest|over|have|has|after)\b|剩")
_DEFINED = "usd_cent = USD / 100; gbp_penny = GBP / 100; cny_jiao = CNY / 10; jin = gram * 500"
_PERCENT: Unit = (("percent", 1),)
_DEGREE: Unit = (("degree", 1),)
_ASKS_PERCENT = re.compile(r"(?i)per\s?cent|%|百分")
_BARE_MONEY = frozenset({"USD", "EUR", "GBP", "CNY", "JPY"})
# Words that are also units: "in", "as" (attosecond), "us" (microsecond), "a" (year).
_NO_UNIT_WORDS = frozenset({"in", "as", "us", "at", "min", "day", "days"})


@dataclass(frozen=True)
class Quantity:
    number: NumberLiteral
    unit: Unit
    """Empty where the thing is counted, not measured."""
    noun: str = ""
    """What is counted, such as `apples`."""


def read_quantity(text: str) -> Quantity | None:
    """Return the number with a unit that the text is, or None. Costs microseconds."""
    text = plain_value(text)
    if not 0 < len(text) <= MAX_QUANTITY_CHARS:
        return None
    # Money comes first, because its sign stands in front; compounds before single units, because
    # "2 h 15 min" would else be 2 of something.
    if special := _read_money(text) or _read_compound(text):
        return special
    # 2π/3 radians, in degrees, which are rational.
    match = _RADIANS.fullmatch(text) if "rad" in text else None
    if match and (times := number_literal(_PI.sub(lambda pi: pi[1] or "1", match[1]))):
        return Quantity(NumberLiteral(180 * times.value, False), _DEGREE)
    percent = number_literal(text)
    if percent and percent.is_percent:
        return Quantity(percent, _PERCENT)
    # Chinese numerals run into the unit without a space: 三千克.
    if match := _DIGITS_FIRST.fullmatch(text) or _CHINESE_FIRST.fullmatch(text):
        divisions = [(match["number"].strip(" ,"), match["unit"].strip())]
    else:
        # Number words: the longest one that leaves a unit is the number.
        spelled = text.split()
        ends = range(min(len(spelled) - 1, 8), 0, -1)
        divisions = [(" ".join(spelled[:end]), " ".join(spelled[end:])) for end in ends]
    for number, unit in divisions:
        literal = number_literal(number)
        found = _with_unit(literal, unit) if literal and not literal.is_percent else None
        # "5ab" reads as 5 of a thing called "ab", and is a product.
        if found and not (found.noun and _PRODUCT.fullmatch(text)):
            return found
    return None


def is_quantity(reference: str, question: str = "") -> bool:
    quantity = read_quantity(reference)
    return quantity is not None and not (quantity.unit == _DEGREE and "pi" in reference)


def is_measured(reference: str, question: str = "") -> bool:
    """A quantity that is no percentage, which number_literal reads as a number."""
    quantity = read_quantity(reference) if is_quantity(reference) else None
    return quantity is not None and quantity.unit != _PERCENT


def equal_quantities(reference: str, answer: str, ask: Ask) -> bool | None:
    """None where two units have to be converted, and pint may not be loaded here."""
    wanted, given = read_quantity(reference), read_quantity(answer)
    if wanted is None or given is None:
        bare = number_literal(answer)
        return bool(wanted and bare and _may_lack_unit(wanted, bare, ask.question))
    # A thing that is counted has no other unit to be converted to.
    if given.noun or wanted.noun:
        things = [(_singular(quantity.noun), quantity.unit) for quantity in (wanted, given)]
        return things[0] == things[1] and same_number(wanted.number, given.number, ask.question)
    units = {wanted.unit, given.unit}
    # "£" and "pounds" may be money or weight, and both texts mean the same one.
    if len(units) == 1 or units == {(("pound", 1),), (("GBP", 1),)}:
        return same_number(wanted.number, given.number, ask.question)
    # "In km/h" and "how many minutes" leave no other unit.
    if wanted.unit in _fixed_units(ask.question):
        return False
    return _converts(wanted, given) if ask.may_load else None


def equal_counts(reference: str, answer: str, question: str) -> bool:
    """Whether an answer is the bare number of the reference with the thing that is counted.

    "12 apples" is 12 where the question speaks of apples, "$12" always; "12 km" is 12 unless the
    question speaks of other units.
    """
    wanted, given = number_literal(reference), read_quantity(answer)
    if wanted is None or given is None:
        return False
    if given.unit == _PERCENT:
        # The question asks for a percentage, so 20 and 20% are one answer to it.
        return bool(_ASKS_PERCENT.search(question)) and wanted.value == 100 * given.number.value
    # What is left is another number than what there was.
    is_rest = question and _LEFT.search(given.noun) and not _ASKS_LEFT.search(question)
    if is_rest or not same_number(wanted, given.number, question):
        return False
    if given.noun:
        asked = set(map(stem_of, _words(question)))
        counted = set(map(stem_of, _counted_in(question)))
        words = set(map(stem_of, {*map(_singular, given.noun.split())} - _FILLERS))
        is_asked = not counted or not words or bool(words & counted)
        is_known = all(word in asked or word in question for word in words)
        return not question or (is_asked and is_known)
    # Dropping or adding a dollar sign is a habit of writing; other units have to be the question's.
    is_free = is_money(given.unit) and not any(map(is_money, _units_in(question)))
    is_known = not question or is_free or _mentions(question, given.unit)
    return is_known or not (_counted_in(question) or _units_in(question))


def _read_money(text: str) -> Quantity | None:
    match = _MONEY.fullmatch(text)
    unit = read_unit(match["sign"]) if match else None
    if not match or not unit:
        return None
    amount = match["minus"] + spelled_scale(match["amount"].strip())
    literal = number_literal(amount)
    if literal is None and (inner := _DIGITS_FIRST.fullmatch(amount)):
        # "$12 dollars", "$12 per hour"
        literal, rest = number_literal(inner["number"]), inner["unit"].strip()
        found = read_unit(rest)
        if rest.startswith(("/", "per ")):
            found = unit = read_unit(f"{match['sign']} {rest}")
        if found != unit:
            return None
    return Quantity(literal, unit) if unit and literal and not literal.is_percent else None


def _read_compound(text: str) -> Quantity | None:
    """2 hours 30 minutes, 5 ft 3 in, 2h15m, 2:15 hours: an amount in the smallest of the units."""
    # h:mm is a duration only with the word hours behind it; else it is a time of day.
    if clock := _CLOCK_HOURS.fullmatch(text):
        minutes = Fraction(60 * int(clock[1]) + int(clock[2] or clock[3]))
        return Quantity(NumberLiteral(minutes, False), (("minute", 1),))
    parts = list(_PART.finditer(text))
    if len(parts) < 2 or _PART.sub("", text).strip():
        return None
    value, name = Fraction(0), ""
    for number, unit in ((Fraction(part[1]), read_unit(part[2])) for part in parts):
        smaller = unit[0][0] if unit else ""
        # "2h15m" has minutes, not metres.
        smaller = "minute" if (name, smaller) == ("hour", "meter") else smaller
        factor = _SMALLER.get((name, smaller)) if name else 1
        if not smaller or not factor or (name and number >= factor):
            return None
        value, name = value * factor + number, smaller
    return Quantity(NumberLiteral(value, is_fraction=False), ((name, 1),))


def _with_unit(number: NumberLiteral, text: str) -> Quantity | None:
    # A known unit wins over a noun of the same spelling.
    if unit := read_unit(text):
        return Quantity(number, unit)
    noun = " ".join(re.sub(r"^\((.*)\)$", r"\1", plain(text)).split()).removesuffix(" of them")
    # Units of a figure that has no measure are no things.
    noun = re.sub(r"^(?:square|cubic|sq\.?|cu\.?) (?=units?$)", "", noun)
    head, _, last = noun.rpartition(" ")
    # "12 km left" is a length.
    if last in _FILLERS and (unit := read_unit(head)):
        return Quantity(number, unit)
    words = set(noun.replace(" of ", " ").split())
    if not _COUNTED.fullmatch(noun) or _NOT_COUNTED & words:
        return None
    # "2 litres of milk" is a volume.
    measure, of, _ = noun.partition(" of ")
    unit = read_unit(measure) if of else None
    return Quantity(number, unit) if unit else Quantity(number, (), noun)


def _may_lack_unit(wanted: Quantity, bare: NumberLiteral, question: str) -> bool:
    is_same = same_number(wanted.number, bare, question)
    if wanted.unit == _PERCENT:
        is_written = bare.value == 100 * wanted.number.value and not bare.is_percent
        return is_same or (is_written and bool(_ASKS_PERCENT.search(question)))
    if not is_same:
        return False
    # A bare count is only right where the question says what is counted.
    if wanted.noun:
        words = [_singular(word) for word in wanted.noun.split() if word != "of"]
        asked = _words(question)
        return bool(question) and all(word in asked or word in question for word in words)
    # Money and degrees lack it as a rule, other units only where the question has them.
    is_free = is_money(wanted.unit) and wanted.unit[0][0] in _BARE_MONEY
    return is_free or wanted.unit == _DEGREE or _mentions(question, wanted.unit)


def _mentions(question: str, unit: Unit) -> bool:
    """Whether a question names a unit, or each of the names that a compound unit is made of."""
    found = _units_in(question)
    names = {name for units in found for name, _ in units} | {*(CURRENCIES if unit[1:] else ())}
    return unit in found or all(
        name in names or any(not alias.isascii() and alias in question for alias in spellings(name))
        for name, _ in unit
    )


@lru_cache(maxsize=64)
def _units_in(question: str) -> frozenset[Unit]:
    """The units that a question names, alone or behind a number, in up to four words."""
    words = [
        re.sub(r"^[(（]|[?,;:()，。；：？]+$|(?<!\.)\.$|'s$", "", word)
        for word in re.split(r"[\s()：:]+", plain(question.replace("$", " ")))[:400]
    ]
    found: set[Unit] = set()
    for index, word in enumerate(words):
        bare = re.sub(r"^[0-9][0-9.,/]*-?", "", word)
        # One letter is a unit only behind a number.
        is_letter = len(bare) == 1 and bare == word and not words[index - 1][-1:].isdigit()
        if bare and bare not in _NO_UNIT_WORDS and not is_letter:
            found.update(_units_at([bare, *words[index + 1 : index + 4]]))
    if re.search(r"[$][0-9]", question):
        found.add((("USD", 1),))
    return frozenset(found)


@lru_cache(maxsize=64)
def _fixed_units(question: str) -> frozenset[Unit]:
    """The units in which a question wants its answer: each the longest that can be read."""
    phrases = (match[1].split() for match in _FIXES_UNIT.finditer(plain(question)))
    return frozenset(unit for words in phrases for unit in _units_at(words)[:1])


def _units_at(words: list[str]) -> list[Unit]:
    """The units that up to four words begin with, the longest first."""
    phrases = (" ".join(words[:size]).strip("?.,;:)") for size in (4, 3, 2, 1))
    return [unit for phrase in phrases if (unit := read_unit(phrase))]


def _words(text: str) -> set[str]:
    return {_singular(word) for word in re.findall(r"[A-Za-z]{1,30}", text.casefold())}


def _counted_in(question: str) -> set[str]:
    """The words for what a question wants counted; none where it leaves that to what is before."""
    return _words(" ".join(_HOW_MANY.findall(question)))


def _singular(noun: str) -> str:
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun if noun.endswith("ss") else noun.removesuffix("s")


def _converts(wanted: Quantity, given: Quantity) -> bool:
    """Whether both are the same amount in different units. Loads pint: for workers only."""
    source, target = (
        _registry().Unit(" * ".join(f"{name} ** {power}" for name, power in quantity.unit))
        for quantity in (wanted, given)
    )
    if source.dimensionality != target.dimensionality:
        return False
    # Fractions all the way, so that 1 km is 1000 m to the last digit.
    exact = Fraction(_registry().Quantity(wanted.number.value, source).to(target).magnitude)
    difference = abs(exact - given.number.value)
    if difference <= abs(exact) * Fraction(1, 10**12):
        return True
    is_rounded = given.number.step and given.number.num_digits >= MIN_CONVERTED_DIGITS
    return bool(is_rounded) and difference <= given.number.step / 2


@cache
def _registry() -> Any:
    """pint's units and our currencies; one currency is no amount of another."""
    # Inside the function: pint takes a second to load.
    import pint

    registry = pint.UnitRegistry(
        non_int_type=Fraction,  # pyright: ignore[reportArgumentType]  its documented use
    )
    for name in CURRENCIES:
        if name.isupper():
            registry.define(f"{name} = [money_{name}]")
    for definition in _DEFINED.split("; "):
        registry.define(definition)
    return registry
