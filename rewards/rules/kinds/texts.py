"""Short texts: names, words, formulas of chemistry, statements that nothing can be said.

Case, articles and punctuation carry no meaning, except in formulas (`Co` is not `CO`). A name may
be abbreviated where the abbreviation can be derived (UK, WWI, G. W. Bush) or is listed in
names.yaml.
"""

import re
from math import gcd
from pathlib import Path

import yaml

from rewards.rules.kinds.comparison import Ask
from rewards.rules.reading.notation import opened, plain, plain_words
from rewards.rules.reading.numbers import ORDINALS, ROMAN, SMALL
from rewards.rules.reading.question import Question, stem_of
from rewards.rules.reading.wording import any_of, pattern_of

MAX_TEXT_WORDS = 8
MAX_TEXT_CHARACTERS = 80

_RATIO = re.compile(r"[0-9]{1,9}(?:\s?(?::|\bto\b|比)\s?[0-9]{1,9}){1,4}")
_QUOTIENT = re.compile(
    r"\\[dt]?frac\s?\{?([0-9]{1,9}?)\}?\s?\{?([0-9]{1,9})\}?|([0-9]{1,9})\s?/\s?([0-9]{1,9})"
)
ASKS_RATIO = re.compile(r"(?i)\bratio|\bproportion|比")
_SURNAME_FIRST = re.compile(r"([A-Z][\w'’-]{1,30}), ((?:[A-Z][\w.'’-]{0,30} ?){1,3})")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_FORMULA = re.compile(r"(?:\(?[A-Z][a-z]?[0-9]{0,3}\)?[0-9]{0,2}){1,12}(?:\^?[0-9]?[+-])?")
_FORMULA_NOTATION = re.compile(
    r"\\(?:mathrm|text|ce|rm)(?![a-z])|[{}\s_$\\]|(?<=[+-])\^|\^(?=[0-9]*[+-])"
)
_ASKS_FORMULA = re.compile(
    r"(?i)\b(?:formula|symbol|gas|ion|molecule|compound|element|oxide)\b|化学式"
)
_UNDETERMINED = re.compile(
    rf"(?i)(?:(?:it|this|that|the \w+|\w+'s age) )?{any_of('undetermined')}"
    r"(?: (?:from|based on|with|by|to|in|without|given|provided|for)\b.{0,80}| given"
    r"| is (?:given|available|provided)| available)?"
)
# World War I is World War One, and the First World War.
_NUMERALS = {word: str(number) for word, number in {**SMALL, **ORDINALS, **ROMAN}.items()}
_MARKS = re.compile(r"[!'’′″\[\]]")
_SHORT_WORDS = {"mt": "mount", "st": "saint", "ft": "fort"}
_ASKS_PERSON = pattern_of("persons")
_TITLES = re.compile(rf"(?i)^{any_of('titles')}\s+(?=\w)")
_PLACE_ENDINGS = "市省县国区州"
# "Rome beat Naples" is no full name. A space has to part the names: were it optional, a run of
# capitals could be parted in exponentially many ways.
_NAME = r"(?:[A-Z][\w.'’-]*|da|de|di|van|von|la|le|president|sir|dr)"
_ALL_NAMES = re.compile(rf"{_NAME}(?: {_NAME})*")
_PARTICLES = frozenset({"da", "de", "di", "van", "von", "la", "le"})
_SMALL_WORDS = frozenset({"of", "the", "and", "for"})


def is_short_text(reference: str, question: str = "") -> bool:
    words = plain(reference) if plain_words(reference) else ""
    # Chinese does not part its words, which have two characters as a rule.
    num_words = len(words.split()) + len(_CHINESE.findall(words)) / 2
    return len(reference) <= MAX_TEXT_CHARACTERS and 0 < num_words <= MAX_TEXT_WORDS


def is_text(reference: str, question: str = "") -> bool:
    return bool(plain_words(reference))


def is_chemical(reference: str, question: str) -> bool:
    """Whether a reference that could be a word (`NO`) is a formula in this question."""
    return bool(_FORMULA.fullmatch(_formula(reference)) and _ASKS_FORMULA.search(question))


def _letter_has_other_marks(reference: str, answer: str) -> bool:
    # Beside a letter marks are mathematics: neither n! nor x' nor [x] is the letter.
    return len(plain_words(reference)) == 1 and (
        _MARKS.findall(plain(reference)) != _MARKS.findall(plain(answer))
    )


def equal_texts(reference: str, answer: str, ask: Ask) -> bool:
    is_long = len(answer) > 2 * len(reference) + MAX_TEXT_CHARACTERS
    if is_long or _letter_has_other_marks(reference, answer):
        return False
    wanted, given = plain_words(reference), plain_words(answer)
    formulas = _formula(reference), _formula(answer)
    if _is_formula(formulas[0]) and formulas[0].casefold() == formulas[1].casefold():
        # The case of a formula carries its meaning; so does the charge of an ion.
        return formulas[0] == formulas[1] or not is_chemical(reference, ask.question)
    # Names that no rule connects, such as water and H2O.
    of_one_thing = _GROUPS.get(_key(reference), set()) & _GROUPS.get(_key(answer), set())
    if wanted == given or of_one_thing or not given:
        return bool(given)
    if (ratio := _ratio(reference)) is not None:
        # To a question for a ratio a fraction is one; 3/1 is no score.
        if (match := _QUOTIENT.fullmatch(plain(answer))) and ASKS_RATIO.search(ask.question):
            answer = f"{match[1] or match[3]}:{match[2] or match[4]}"
        return ratio == _ratio(answer)
    if _UNDETERMINED.fullmatch(plain(reference)):
        return bool(_UNDETERMINED.fullmatch(plain(answer)))
    return _same_name(plain(reference), plain(answer), ask.question)


def _ratio(text: str) -> tuple[int, ...] | None:
    """The numbers of 3:2 or "3 to 2", without a common divisor."""
    text = plain(text)
    if not _RATIO.fullmatch(text):
        return None
    numbers = [int(number) for number in re.findall("[0-9]+", text)]
    divisor = gcd(*numbers) or 1
    return tuple(number // divisor for number in numbers)


def _key(text: str) -> str:
    formula = _formula(text)
    return formula if _is_formula(formula) else plain_words(text)


def _formula(text: str) -> str:
    return _FORMULA_NOTATION.sub("", opened(text))


def _is_formula(text: str) -> bool:
    """More than one capital or a digit: a word is no formula."""
    num_capitals = sum(sign.isupper() or 2 * sign.isdigit() for sign in text)
    is_short = len(text) <= 2 or text.isupper()
    return bool(_FORMULA.fullmatch(text)) and (is_short or num_capitals > 1)


def _same_name(reference: str, answer: str, question: str) -> bool:
    """Abbreviations, numerals, surnames, and nouns that the question says."""
    if match := _SURNAME_FIRST.fullmatch(answer):
        answer = f"{match[2]} {match[1]}"
    wanted, given = (plain_words(_TITLES.sub("", text)).split() for text in (reference, answer))
    # "First World War" is World War I; other words keep their order.
    has_numeral = any(word in _NUMERALS or word in _SHORT_WORDS for word in wanted + given)
    same_words = sorted(map(_numeral, wanted)) == sorted(map(_numeral, given))
    if wanted == given or (has_numeral and same_words):
        return True
    short, long = sorted((reference, answer), key=len)
    is_place = len(short) > 1 and long[:-1] == short and long[-1] in _PLACE_ENDINGS
    # In both directions: the reference may be the short form.
    is_short_form = is_place or _abbreviates(answer, wanted) or _abbreviates(reference, given)
    if is_short_form or not wanted or not given:
        return is_short_form
    # "Monday and Tuesday" names two things, in no order.
    both = [sorted(" ".join(names).split(" and ")) for names in (wanted, given)]
    are_names = len(wanted) == len(given) or _ALL_NAMES.fullmatch(long)
    if both[0] == both[1] or (are_names and _same_person(wanted, given, question)):
        return True
    # "Pacific" answers which ocean: the noun at the end, or the words in front, are the question's.
    asked = Question.of(question)
    shorter, longer = sorted((wanted, given), key=len)
    size = len(shorter)
    rest = longer[size:] if shorter == longer[:size] else longer[:-size]
    is_part = shorter in (longer[:size], longer[-size:])
    said = {stem_of(word) for word in rest if word not in ("of", "the", "a", "in")}
    return is_part and bool(said) and said <= {*asked.stems} and asked.in_order(rest)


def _same_person(wanted: list[str], given: list[str], question: str) -> bool:
    """Initials for names anywhere; to a question for a person a surname, and nothing but names."""
    if wanted[-1] != given[-1]:
        return False
    if len(wanted) == len(given) > 1:
        pairs = (sorted(pair, key=len) for pair in zip(wanted, given, strict=True))
        return all(short == long or (short == long[0] and long.isalpha()) for short, long in pairs)
    # A surname is enough for a person, and a first name is not.
    shorter, longer = sorted((wanted, given), key=len)
    is_surname = len(shorter) == 1 or (len(shorter) == 2 and shorter[0] in _PARTICLES)
    if "".join(shorter[:-1]) == "".join(name[0] for name in longer[:-1]):
        # J. K. Rowling and JK Rowling.
        return len(shorter) > 1
    is_name = len(longer) <= 4 and len(shorter[-1]) > 2 and not _numeral(shorter[-1]).isdigit()
    asks = _ASKS_PERSON.search(question) and not re.search(r"\b(?:where|when)\b", question, re.I)
    return bool(asks) and is_surname and is_name and not _SMALL_WORDS & {*longer}


def _numeral(word: str) -> str:
    return _SHORT_WORDS.get(word) or _NUMERALS.get(word, word)


def _abbreviates(text: str, words: list[str]) -> bool:
    """UK for United Kingdom, WWI and WW1 for World War I."""
    letters = re.sub(r"[.\s]", "", text)
    if not 2 <= len(letters) <= 6 or not letters[:2].isupper() or len(words) < 2:
        return False
    # Both with and without small words: USA, and U of T.
    initials = "".join(word[0] for word in words if word not in _SMALL_WORDS)
    *firsts, last = words
    head, number = "".join(word[0] for word in firsts), _numeral(last)
    short_forms = {head + number, head + last} if number.isdigit() else {initials, head + last[0]}
    return letters.casefold() in short_forms


_LINES = yaml.load(Path(__file__).with_name("names.yaml").read_text("utf-8"), yaml.CSafeLoader)
_GROUPS: dict[str, set[int]] = {}
"""The lines of names.yaml in which a name stands."""
for _number, _name in ((number, name) for number, line in enumerate(_LINES) for name in line):
    _GROUPS.setdefault(_key(_name), set()).add(_number)
