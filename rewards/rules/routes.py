"""The kinds of answer, in the order in which they claim a reference.

One module for each kind under kinds/, with a function that reads (can a reference be of this kind?)
and one that compares. More kinds of reference are added here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewards.rules.kinds import sequences
from rewards.rules.kinds.choices import equal_choices, is_choice, is_letters
from rewards.rules.kinds.comparison import Equal
from rewards.rules.kinds.dates import equal_dates, is_date
from rewards.rules.kinds.expressions import equal_expressions, is_expression
from rewards.rules.kinds.graded import GRADED, is_gradable
from rewards.rules.kinds.intervals import claims_interval, equal_intervals, read_intervals
from rewards.rules.kinds.matrices import equal_matrices, read_matrix
from rewards.rules.kinds.members import equal_cells, equal_numbers
from rewards.rules.kinds.quantities import equal_quantities, is_measured, is_quantity
from rewards.rules.kinds.texts import equal_texts, is_short_text, is_text
from rewards.rules.kinds.yes_no import equal_yes_no, is_yes_no
from rewards.rules.reading.numbers import number_literal

NATURAL = "natural"
"""The route of references in natural language, which rules cannot decide."""
MAX_RULE_CHARACTERS = 1000
"""A longer final answer is no short answer; a longer reference is natural language."""


def _never(reference: str, question: str) -> bool:
    return False


def _if_read(read: Callable[[str], object]) -> Callable[[str, str], bool]:
    return lambda reference, question: read(reference) is not None


@dataclass(frozen=True)
class Kind:
    """One way to verify."""

    version: int
    """Goes to the ledger with every score; raise it when a verdict may change."""
    reads: Callable[[str, str], bool]
    """Whether a reference to a question can be of this kind; never hangs."""
    equal: Equal = equal_texts
    claims: Callable[[str, str], bool] | None = None
    """Whether to choose this kind unasked; as `reads` if it is not given."""
    grade: Callable[[Sequence[str], str, str], float] | None = None
    """References, whole answer and question to partial credit; replaces `equal`."""
    takes_or: bool = False
    """"x = 1 or x = 2" is one answer, not a hedge, and several boxes may hold its members."""
    takes_option: bool = False
    """An answer may give the letter of the option whose text is the reference."""


ROUTES: dict[str, Kind] = {
    # Order matters: the first kind that claims a reference takes it.
    "yes_no": Kind(4, is_yes_no, equal_yes_no),
    "choice": Kind(4, is_letters, equal_choices, is_choice),
    "quantity": Kind(4, is_quantity, equal_quantities, is_measured, takes_option=True),
    "number": Kind(5, _if_read(number_literal), equal_numbers, takes_option=True),
    "date": Kind(5, is_date, equal_dates, takes_option=True),
    "matrix": Kind(4, _if_read(read_matrix), equal_matrices),
    "interval": Kind(4, _if_read(read_intervals), equal_intervals, claims_interval, takes_or=True),
    "set": Kind(4, sequences.is_set, sequences.equal_sets, sequences.claims_set, takes_or=True),
    "tuple": Kind(4, sequences.is_tuple, sequences.equal_tuples, takes_or=True),
    "unordered_list": Kind(
        4, sequences.is_items, sequences.equal_unordered, sequences.claims_unordered, takes_or=True
    ),
    "list": Kind(4, sequences.is_items, sequences.equal_lists, sequences.is_list),
    "expression": Kind(5, is_expression, equal_expressions, takes_option=True),
    "cell": Kind(4, is_text, equal_cells, _never),
    **{name: Kind(1, is_gradable, claims=_never, grade=grade) for name, grade in GRADED.items()},
    "text": Kind(6, is_text, equal_texts, is_short_text, takes_option=True),
    NATURAL: Kind(1, lambda reference, question: True),
}
