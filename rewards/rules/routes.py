"""The kinds of answer, in the order in which they claim a reference.

One module for each kind under kinds/, with a function that reads (can a reference be of this kind?)
and one that compares. More kinds of reference are added here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewards.rules.kinds.choices import chosen_text, equal_choices, is_choice, is_letters
from rewards.rules.kinds.comparison import Ask, Equal
from rewards.rules.kinds.dates import equal_dates, is_date
from rewards.rules.kinds.expressions import equal_expressions, is_expression
from rewards.rules.kinds.graded import GRADED, is_gradable
from rewards.rules.kinds.intervals import claims_interval, equal_intervals, is_interval
from rewards.rules.kinds.matrices import equal_matrices, is_matrix
from rewards.rules.kinds.members import equal_cells, equal_numbers, is_cell
from rewards.rules.kinds.quantities import equal_quantities, is_measured, is_quantity
from rewards.rules.kinds.sequences import (
    claims_set,
    claims_unordered,
    equal_lists,
    equal_sets,
    equal_tuples,
    equal_unordered,
    is_items,
    is_list,
    is_set,
    is_tuple,
)
from rewards.rules.kinds.texts import equal_texts, is_short_text, is_text
from rewards.rules.kinds.yes_no import equal_yes_no, is_yes_no
from rewards.rules.reading.notation import plain_words
from rewards.rules.reading.numbers import number_literal

NATURAL = "natural"
"""The route of references in natural language, which rules cannot decide."""
MAX_RULE_CHARACTERS = 1000
"""A longer final answer is no short answer; a longer reference is natural language."""


def _never(reference: str, question: str) -> bool:
    return False


@dataclass(frozen=True)
class Kind:
    """One way to verify."""

    version: int
    """Goes to the ledger with every score; raise it when a verdict may change."""
    reads: Callable[[str, str], bool]
    """Whether a reference to a question can be of this kind; never hangs."""
    equal: Equal
    claims: Callable[[str, str], bool] | None = None
    """Whether to choose this kind unasked; as `reads` if it is not given."""
    grade: Callable[[Sequence[str], str, str], float] | None = None
    """References, whole answer and question to partial credit, in milliseconds; replaces
    `equal`."""
    takes_or: bool = False
    """"x = 1 or x = 2" is one answer, not a hedge, and several boxes may hold its members."""
    takes_option: bool = False
    """An answer may give the letter of the option whose text is the reference."""

    def applies(self, reference: str, question: str) -> bool:
        if self.grade is None and len(reference) > MAX_RULE_CHARACTERS:
            return False
        return (self.claims or self.reads)(reference, question)


def _with_option(equal: Equal) -> Equal:
    def compare(reference: str, answer: str, ask: Ask) -> bool | None:
        return equal(reference, chosen_text(answer, ask.question) or answer, ask)

    return compare


def _same_words(reference: str, answer: str, ask: Ask) -> bool:
    return plain_words(reference) == plain_words(answer)


ROUTES: dict[str, Kind] = {
    # Order matters: the first kind that claims a reference takes it.
    "yes_no": Kind(3, is_yes_no, equal_yes_no),
    "choice": Kind(3, is_letters, equal_choices, claims=is_choice),
    "quantity": Kind(3, is_quantity, _with_option(equal_quantities), claims=is_measured),
    "number": Kind(
        4,
        lambda reference, question: number_literal(reference) is not None,
        _with_option(equal_numbers),
    ),
    "date": Kind(3, is_date, _with_option(equal_dates)),
    "matrix": Kind(3, is_matrix, equal_matrices),
    "interval": Kind(3, is_interval, equal_intervals, claims=claims_interval, takes_or=True),
    "set": Kind(3, is_set, equal_sets, claims=claims_set, takes_or=True),
    "tuple": Kind(3, is_tuple, equal_tuples, takes_or=True),
    "unordered_list": Kind(3, is_items, equal_unordered, claims=claims_unordered, takes_or=True),
    "list": Kind(3, is_items, equal_lists, claims=is_list),
    "expression": Kind(4, is_expression, _with_option(equal_expressions)),
    "cell": Kind(3, is_cell, equal_cells, claims=_never),
    **{
        name: Kind(1, is_gradable, _same_words, claims=_never, grade=grade)
        for name, grade in GRADED.items()
    },
    "text": Kind(4, is_text, _with_option(equal_texts), claims=is_short_text),
    NATURAL: Kind(1, lambda reference, question: True, _same_words),
}
