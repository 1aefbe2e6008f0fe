"""Preference pairs: of responses with fewer and more wrong claims, or of an RL run's ledger.

    all pairs of one prompt and mode -> those with a gap -> a few per prompt -> of like length

The rules are those of RLAIF-V (https://arxiv.org/abs/2405.17220). What is drawn depends on the seed
and on the responses themselves, never on their order.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, groupby, pairwise
from typing import Literal

from rl.align.claims.types import JudgedResponse, PreferencePair, Response, RewardedResponse
from rl.data.fingerprint import stable_hash
from rl.data.media.names import from_json
from rl.loop.stages import Prompt
from rl.run.ledger import LedgerRow

PER_PROMPT = 2
RATIOS = tuple(Fraction(percent, 100) for percent in range(0, 100, 2))
"""By how much of the rejected response a chosen one may be shorter: what is searched."""

Side = JudgedResponse | RewardedResponse
# A Chinese or Japanese character, or a run of others.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")


@dataclass(frozen=True)
class Balance:
    """Mean words of the pairs, before and after those with too short a chosen response left."""

    ratio: float
    """A chosen response may be shorter than the rejected one by this share of it."""
    chosen_before: float
    rejected_before: float
    chosen: float
    rejected: float


@dataclass(frozen=True)
class PairSelection:
    pairs: tuple[PreferencePair, ...]
    """In the order of prompt ids, modes and indices."""
    counts: Mapping[str, int]
    """What became of the responses, `responses/WHY`, and of their pairs, `pairs/WHY`."""
    balance: Balance | None
    """None where no pair was left to balance."""


def select_pairs(
    judged: Iterable[JudgedResponse], seed: int, gap: float = 1, per_prompt: int = PER_PROMPT
) -> PairSelection:
    """Return the preference pairs of judged responses.

    gap: the least difference between the scores of a pair. per_prompt: the most pairs of a prompt,
    all modes together. A response with a claim that has no label is left out, and so is one without
    claims: to say nothing would be the best choice. Raises ValueError where two responses have one
    prompt id, mode and index.
    """
    counts: Counter[str] = Counter()
    usable = []
    for one in _in_order(judged):
        why = _unusable(one)
        counts[f"responses/{why or 'used'}"] += 1
        if why is None:
            usable.append(one)
    candidates = [
        pair
        for _, group in groupby(usable, key=lambda one: one.response.key[:2])
        for pair in _candidates(list(group), gap, lambda one: one.response.answer, counts)
    ]
    return _selection(candidates, seed, per_prompt, counts)


def mine_pairs(
    rows: Iterable[LedgerRow],
    encode: Callable[[LedgerRow], tuple[int, ...]],
    seed: int,
    gap: float,
    by: Literal["reward", "accuracy"] = "reward",
    per_prompt: int = PER_PROMPT,
) -> PairSelection:
    """Return pairs of trajectories of one group that an RL run rewarded differently.

    rows: of any number of whole steps, as read_rows gives them. encode: the tokens of a
    row's text, with the end of sequence where it was sampled, because the ledger keeps texts; asked
    of the rows of the pairs alone. gap: the least difference between the rewards, or accuracies, of
    a pair.
    """
    counts: Counter[str] = Counter()
    candidates: list[PreferencePair] = []
    groups = _groups(rows)
    for group_id, group in groups.items():
        rewarded = []
        for index, row in enumerate(group):
            score = row.reward if by == "reward" else row.parts.get("accuracy")
            counts["responses/no_score" if score is None else "responses/used"] += 1
            if score is not None:
                rewarded.append(RewardedResponse(_logged(row, index), group_id, score))
        candidates += _candidates(rewarded, gap, lambda one: one.response.text, counts)

    def encoded(side: Side) -> Side:
        assert isinstance(side, RewardedResponse)
        row = groups[side.group_id][side.response.index]
        return replace(side, response=replace(side.response, token_ids=encode(row)))

    selection = _selection(candidates, seed, per_prompt, counts)
    pairs = (PreferencePair(encoded(p.chosen), encoded(p.rejected)) for p in selection.pairs)
    return replace(selection, pairs=tuple(pairs))


def balanced(pairs: Sequence[PreferencePair]) -> tuple[list[PreferencePair], Balance | None]:
    """Drop pairs whose chosen response is shorter by more than a ratio, so that length tells less.

    The ratio, of 0 to 0.98 by 0.02, is the one that makes |mean chosen - mean rejected| over the
    mean of the rejected, in words, smallest; of equals the one that keeps the most pairs.
    """
    lengths = [
        (num_words(pair.chosen.response.text), num_words(pair.rejected.response.text))
        for pair in pairs
    ]
    found: tuple[Fraction, Fraction] | None = None
    for ratio in reversed(RATIOS):
        kept = [(c, r) for c, r in lengths if _is_long_enough(c, r, ratio)]
        apart = _imbalance(kept)
        if apart is not None and (found is None or apart < found[0]):
            found = apart, ratio
    if found is None:
        return [], None
    ratio = found[1]
    are_kept = [_is_long_enough(chosen, rejected, ratio) for chosen, rejected in lengths]
    kept = [length for length, is_kept in zip(lengths, are_kept, strict=True) if is_kept]
    balance = Balance(float(ratio), *_means(lengths), *_means(kept))
    return [pair for pair, is_kept in zip(pairs, are_kept, strict=True) if is_kept], balance


def num_words(text: str) -> int:
    """Words between white space; every Chinese or Japanese character is a word.

    Example: num_words("a red 杯子") == 4
    """
    return sum(1 for _ in _WORD.finditer(text))


def _in_order(judged: Iterable[JudgedResponse]) -> list[JudgedResponse]:
    ordered = sorted(judged, key=lambda one: one.response.key)
    for one, following in pairwise(ordered):
        if one.response.key == following.response.key:
            raise ValueError(
                f"two responses are number {one.response.index} of prompt {one.response.prompt.id} "
                f"in mode {one.response.mode}; give prompts ids of their own, and number responses"
            )
    return ordered


def _unusable(judged: JudgedResponse) -> str | None:
    """Why a response cannot be one of a pair."""
    if judged.response.answer is None:
        return "no_answer"
    if not judged.claims:
        return "no_claims"
    return None if judged.is_complete else "no_label"


def _candidates(
    sides: Sequence[Side], gap: float, compared: Callable[[Side], str | None], counts: Counter[str]
) -> list[PreferencePair]:
    """All pairs of responses to one prompt in one mode that differ enough.

    compared: the text whose equality makes a pair worthless.
    """
    found = []
    for one, other in combinations(sides, 2):
        if compared(one) == compared(other):
            counts["pairs/identical_text"] += 1
        elif one.score == other.score or abs(one.score - other.score) < gap:
            counts["pairs/gap_too_small"] += 1
        else:
            better, worse = (one, other) if one.score > other.score else (other, one)
            found.append(PreferencePair(better, worse))
    return found


def _selection(
    candidates: Sequence[PreferencePair], seed: int, per_prompt: int, counts: Counter[str]
) -> PairSelection:
    drawn = _drawn(candidates, seed, per_prompt)
    pairs, balance = balanced(drawn)
    counts["pairs/over_limit"] += len(candidates) - len(drawn)
    counts["pairs/chosen_too_short"] += len(drawn) - len(pairs)
    counts["pairs/kept"] += len(pairs)
    return PairSelection(tuple(pairs), dict(sorted((+counts).items())), balance)


def _drawn(pairs: Iterable[PreferencePair], seed: int, per_prompt: int) -> list[PreferencePair]:
    """At most so many of each prompt: those with the lowest hashes, which no order changes."""
    of_prompt: defaultdict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        of_prompt[pair.prompt.id].append(pair)
    drawn = [
        pair
        for prompt_id in sorted(of_prompt)
        for pair in sorted(of_prompt[prompt_id], key=lambda pair: _draw(seed, pair))[:per_prompt]
    ]
    return sorted(drawn, key=_place)


def _draw(seed: int, pair: PreferencePair) -> int:
    return stable_hash(json.dumps([seed, "pair", pair.id]))


def _place(pair: PreferencePair) -> tuple[str, str, str, int, int]:
    chosen, rejected = pair.chosen, pair.rejected
    group_id = chosen.group_id if isinstance(chosen, RewardedResponse) else ""
    return pair.prompt.id, pair.mode, group_id, chosen.response.index, rejected.response.index


def _is_long_enough(chosen: int, rejected: int, ratio: Fraction) -> bool:
    return (rejected - chosen) * ratio.denominator <= ratio.numerator * rejected


def _imbalance(lengths: Sequence[tuple[int, int]]) -> Fraction | None:
    """|mean chosen - mean rejected| / mean rejected; None without any pair."""
    if not lengths:
        return None
    chosen, rejected = sum(c for c, _ in lengths), sum(r for _, r in lengths)
    return Fraction(abs(chosen - rejected), rejected or 1)


def _means(lengths: Sequence[tuple[int, int]]) -> tuple[float, float]:
    count = len(lengths)
    return sum(c for c, _ in lengths) / count, sum(r for _, r in lengths) / count


def _groups(rows: Iterable[LedgerRow]) -> dict[str, list[LedgerRow]]:
    """Rows by group, each group in the order of the ledger."""
    groups: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        groups[row.group_id].append(row)
    return groups


def _logged(row: LedgerRow, index: int) -> Response:
    """The response of a row, its tokens yet to come."""
    prompt = Prompt(
        id=row.prompt_id,
        messages=tuple(json.loads(row.messages)),
        reference=row.reference,
        task=row.task,
        media=from_json(row.media) if row.media else (),
    )
    return Response(
        prompt=prompt,
        mode=row.mode,
        index=index,
        token_ids=(),
        text=row.text,
        answer=row.answer,
    )
