"""How a unit is read from text, in any of its spellings in units.yaml, English and Chinese.

Only names are known here; what they are worth is asked of pint, in a worker
(rewards/rules/kinds/quantities.py).
"""

import re
from pathlib import Path

import yaml

from rewards.rules.reading.notation import INNER_TEXT

MAX_UNIT_CHARS = 60

_TABLES = yaml.load(  # the loader in C starts the process 20 ms earlier
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), yaml.CSafeLoader
)
CURRENCIES: dict[str, str] = _TABLES["currencies"]
_BY_NAME, _BY_SYMBOL = (
    {
        alias.replace("_", " ") if is_exact else alias.replace("_", " ").casefold(): name
        for table in tables
        for name, line in table.items()
        for alias in line.split()
    }
    for is_exact, tables in ((False, (_TABLES["names"], CURRENCIES)), (True, (_TABLES["symbols"],)))
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s?\{(.{1,20})\}\s?\{(.{1,20})\}"), r"\1/\2"),
    (re.compile(r"\\(?:rm|,|;|!)(?![a-zA-Z])|~|\{\}"), " "),
    (re.compile(r"\^\s?\{\s?([-+]?[1-4])\s?\}"), r"^\1"),
    (INNER_TEXT, r" \1 "),
    (re.compile(r"\^\s?\{?\s?\\circ\s?\}?"), "°"),
    (re.compile(r"\\(?:Omega|ohm)(?![a-zA-Z])"), "Ω"),
    (re.compile(r"\\mu(?![a-zA-Z])\s?|µ"), "μ"),
    (re.compile(r"°\s?(?=[CF]\b)"), "deg"),
    (re.compile(r"(?i)(?:\bsquare |\bsq\.? |平方)([^\s/每]+)|(\S+) squared\b"), r"\1\2^2"),
    (re.compile(r"(?i)(?:\bcubic |立方)([^\s/每]+)|(\S+) cubed\b"), r"\1\2^3"),
    (re.compile(r"\s+(?=\^)"), ""),
)
_POWER = re.compile(r"(.{1,24}?)\s?(?:\^\s?([-+]?[1-4])|(?<=m)([23])|(?<=[a-z])(-[1-4]))")
_PER = re.compile(r"\s?(?:/|\bper\b|每)\s?")
_PRODUCT = re.compile(r"\s?(?:\\cdot|[*⋅·.-](?![0-9]))\s?|\s+")

_PREFIXES = {"k": "kilo", "M": "mega", "G": "giga", "T": "tera", "m": "milli"}
_PREFIXES |= {"μ": "micro", "u": "micro", "n": "nano", "p": "pico"}
_SI_UNITS = frozenset(
    """meter gram second ampere volt watt joule newton pascal hertz coulomb farad tesla liter mole
    electron_volt henry siemens weber""".split()
)

Unit = tuple[tuple[str, int], ...]
"""Names with their exponents, sorted: km/h is (("hour", -1), ("kilometer", 1))."""


def read_unit(text: str) -> Unit | None:
    """Return the unit that the text is, in any of its spellings, or None.

    The text has been through `plain`. m/s^{2} and "metres per second squared" are the same.
    """
    if not 0 < len(text) <= MAX_UNIT_CHARS:
        return None
    # Most units are one word, and need none of this.
    if not (text.isascii() and text.isalpha()):
        for form, replacement in _LATEX:
            text = form.sub(replacement, text)
    powers: dict[str, int] = {}
    pieces = _PER.split(text.replace("(", "").replace(")", "").strip())
    # m/s/s is a unit, more slashes are a path or a date.
    if len(pieces) > 3 or not all(pieces):
        return None
    for index, piece in enumerate(pieces):
        whole = _factor(piece)
        factors = [whole] if whole else [_factor(part) for part in _PRODUCT.split(piece.strip())]
        for factor in factors:
            if factor is None:
                return None
            for name, power in factor:
                powers[name] = powers.get(name, 0) + (-power if index else power)
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def is_money(unit: Unit) -> bool:
    return len(unit) == 1 and unit[0][0] in CURRENCIES and unit[0][1] == 1


def spellings(name: str) -> list[str]:
    """Every way to write a unit."""
    return [alias for alias, known in {**_BY_NAME, **_BY_SYMBOL}.items() if known == name]


def _factor(text: str) -> list[tuple[str, int]] | None:
    """One unit with its exponent, or the two of a name like `mph`."""
    if match := _POWER.fullmatch(text.strip()):
        name = _name(match[1])
        return [(name, int(match[2] or match[3] or match[4]))] if name else None
    over, _, under = (_name(text) or "").partition("/")
    return [(name, power) for name, power in ((over, 1), (under, -1)) if name] or None


def _name(text: str) -> str | None:
    text = text.strip()
    word = " ".join(text.casefold().split())
    names = [_BY_NAME.get(word.removesuffix(ending)) for ending in ("", "s", "es")]
    # The table has the common multiples; μC and pF are made of their parts.
    prefix, base = _PREFIXES.get(text[:1]), _BY_SYMBOL.get(text[1:])
    made = f"{prefix}{base}" if prefix and base in _SI_UNITS else None
    return next(filter(None, (_BY_SYMBOL.get(text), *names, made)), None)
