"""Preference pairs: of responses with fewer and more wrong claims, or of an RL run's ledger.

    all pairs of one prompt and mode -> those with a gap -> a few per prompt -> of like length

The rules are those of RLAIF-V (https://arxiv.org/abs/2405.17220). What is drawn depends on the seed
and on the responses themselves, never on their order.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, groupby
from pathlib import Path
from typing import Literal

from rl.align.claims.files import from_row
from rl.align.claims.types import (
    JudgedResponse,
    PreferencePair,
    Response,
    RewardedResponse,
    ScoredResponse,
)
from rl.align.report import listed
from rl.data.fingerprint import stable_hash
from rl.run.ledger import LedgerRow, read_rows

# By what share of the rejected response a chosen one may be shorter: the values that are tried.
# Exact fractions, so that a length right at the limit is decided the same way on every machine.
RATIOS = tuple(Fraction(percent, 100) for percent in range(0, 100, 2))
# Words stand between white space; of Chinese and Japanese every character counts as one.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")


@dataclass(frozen=True)
class PairSelection:
    pairs: tuple[PreferencePair, ...]
    """In the order of prompt ids, modes and indices."""
    counts: Mapping[str, int]
    """What became of the responses, `responses/WHY`, and of their pairs, `pairs/WHY`."""
    balance: Mapping[str, float] | None
    """See `balanced`; None where no pair was left to balance."""


def select_pairs(
    judged: Iterable[JudgedResponse], seed: int, gap: float = 1, per_prompt: int = 2
) -> PairSelection:
    """Return the preference pairs of judged responses.

    gap: the least difference between the scores of a pair. per_prompt: the most pairs of a prompt,
    all modes together. A response with a claim that has no label is left out, and so is one without
    claims: to say nothing would be the best choice.
    """
    counts: Counter[str] = Counter()
    usable: list[JudgedResponse] = []
    # Sorted, because groupby below joins neighbours only.
    for each in sorted(judged, key=lambda each: each.response.key):
        if each.response.answer is None:
            counts["responses/no_answer"] += 1
        elif not each.claims:
            counts["responses/no_claims"] += 1
        elif not each.is_complete:
            counts["responses/no_label"] += 1
        else:
            counts["responses/used"] += 1
            usable.append(each)
    candidates: list[PreferencePair] = []
    for _, group in groupby(usable, key=lambda each: each.response.key[:2]):
        candidates += _candidates(list(group), gap, lambda each: each.response.answer, counts)
    return _selection(candidates, seed, per_prompt, counts)


def mine_pairs(
    rows: Iterable[LedgerRow],
    encode: Callable[[LedgerRow], tuple[int, ...]],
    seed: int,
    gap: float,
    by: Literal["reward", "accuracy"] = "reward",
    per_prompt: int = 2,
) -> PairSelection:
    """Return pairs of trajectories of one group that an RL run rewarded differently.

    rows: of any number of whole steps (newest_rows). encode: the tokens of a row's text, with the
    end of sequence where it was sampled, because the ledger keeps texts; called for the rows of the
    pairs alone. gap: the least difference between the rewards, or accuracies, of a pair.
    """
    counts: Counter[str] = Counter()
    candidates: list[PreferencePair] = []
    groups: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        # Behind a choice that the policy made, a response is that of another mode.
        if row.choice is None:
            groups[row.group_id].append(row)
    # Within a group only: the policy changes from step to step, and so do its rewards.
    for group_id, group in groups.items():
        rewarded = []
        for index, row in enumerate(group):
            score = row.reward if by == "reward" else row.parts.get("accuracy")
            counts["responses/no_score" if score is None else "responses/used"] += 1
            if score is None:
                continue
            # A ledger has the columns of a stage's file, but for these.
            others = {"pinned_mode": None, "place": index, "token_ids": ()}
            response = from_row(Response, vars(row) | others)
            rewarded.append(RewardedResponse(response, group_id, score))
        candidates += _candidates(rewarded, gap, lambda each: each.response.text, counts)
    selection = _selection(candidates, seed, per_prompt, counts)

    # Only now, because tokenising every response of a ledger would take minutes. The length rule
    # counts words, so it does not need the tokens either.
    def encoded(scored: ScoredResponse) -> ScoredResponse:
        assert isinstance(scored, RewardedResponse)
        row = groups[scored.group_id][scored.response.index]
        return replace(scored, response=replace(scored.response, token_ids=encode(row)))

    pairs = (PreferencePair(encoded(p.chosen), encoded(p.rejected)) for p in selection.pairs)
    return replace(selection, pairs=tuple(pairs))


def newest_rows(ledger: Path, last_step: int, num_groups: int) -> list[LedgerRow]:
    """The rows of the newest whole steps up to `last_step` that hold at least so many groups."""
    rows: list[LedgerRow] = []
    for path in sorted(ledger.glob("step_*.parquet"), reverse=True):
        # The run may have gone on after the checkpoint whose policy is aligned.
        if int(path.stem.removeprefix("step_")) > last_step:
            continue
        rows += read_rows(path)
        if len({row.group_id for row in rows}) >= num_groups:
            break
    return rows


def refuse_no_pairs(counts: Mapping[str, int]) -> None:
    """Raise ValueError if no preference pair is left; counts: PairSelection.counts."""
    if not counts.get("pairs/kept"):
        raise ValueError(
            f"no preference pair is left: {listed(counts)}; lower align.gap, or start again with "
            "more align.prompts, more align.responses or a higher align.temperature. All that was "
            "sampled and labelled is kept until then"
        )


def balanced(
    pairs: Sequence[PreferencePair],
) -> tuple[list[PreferencePair], Mapping[str, float] | None]:
    """Drop pairs whose chosen response is shorter by more than a ratio, so that length tells less.

    The ratio, of 0 to 0.98 by 0.02, is the one that makes |mean chosen - mean rejected| over the
    mean of the rejected, in words, smallest; of equals the one that keeps the most pairs. Returns
    with the pairs the ratio and these means of all pairs and of those that are kept.
    """
    sides = ("chosen", "rejected")
    texts = [[getattr(pair, side).response.text for side in sides] for pair in pairs]
    lengths = [[num_words(text) for text in both] for both in texts]

    def mean_lengths(of: Sequence[int]) -> list[Fraction]:
        return [Fraction(sum(lengths[n][side] for n in of), len(of)) for side in (0, 1)]

    choices = []
    for ratio in reversed(RATIOS):
        if kept := [n for n, (c, r) in enumerate(lengths) if r - c <= ratio * r]:
            chosen, rejected = mean_lengths(kept)
            choices.append((abs(chosen - rejected) / (rejected or 1), ratio, kept))
    if not choices:
        return [], None
    # Of equals min takes the first, which has the largest ratio and so keeps the most.
    _, ratio, kept = min(choices, key=lambda choice: choice[0])
    names = ("ratio", "chosen_before", "rejected_before", *sides)
    figures = map(float, (ratio, *mean_lengths(range(len(pairs))), *mean_lengths(kept)))
    return [pairs[n] for n in kept], dict(zip(names, figures, strict=True))


def num_words(text: str) -> int:
    """Example: num_words("a red 杯子") == 4"""
    return len(_WORD.findall(text))


def _candidates(
    responses: Sequence[ScoredResponse],
    gap: float,
    compared: Callable[[ScoredResponse], str | None],
    counts: Counter[str],
) -> list[PreferencePair]:
    """Pairs that differ enough. compared: the text whose equality makes a pair worthless."""
    pairs = []
    for first, second in combinations(responses, 2):
        if compared(first) == compared(second):
            counts["pairs/identical_text"] += 1
        # Equal scores make no pair, even where the gap is 0.
        elif first.score == second.score or abs(first.score - second.score) < gap:
            counts["pairs/gap_too_small"] += 1
        else:
            is_first = first.score > second.score
            pairs.append(PreferencePair(*((first, second) if is_first else (second, first))))
    return pairs


def _selection(
    candidates: Sequence[PreferencePair], seed: int, per_prompt: int, counts: Counter[str]
) -> PairSelection:
    """At most so many pairs of each prompt, then those of like length."""
    by_prompt: defaultdict[str, list[PreferencePair]] = defaultdict(list)
    for pair in candidates:
        by_prompt[pair.prompt.id].append(pair)

    # The lowest hashes rather than a generator's draw: the same pairs whatever the order, and
    # those of one prompt do not change when another prompt is added.
    def draw(pair: PreferencePair) -> int:
        return stable_hash(json.dumps([seed, "pair", pair.id]))

    def position(pair: PreferencePair) -> tuple[str, str, str, int, int]:
        group_id = pair.chosen.group_id if isinstance(pair.chosen, RewardedResponse) else ""
        indices = pair.chosen.response.index, pair.rejected.response.index
        return pair.prompt.id, pair.mode, group_id, *indices

    drawn = [pair for of in by_prompt.values() for pair in sorted(of, key=draw)[:per_prompt]]
    pairs, balance = balanced(sorted(drawn, key=position))
    counts["pairs/over_limit"] += len(candidates) - len(drawn)
    counts["pairs/chosen_too_short"] += len(drawn) - len(pairs)
    counts["pairs/kept"] += len(pairs)
    return PairSelection(tuple(pairs), dict(sorted((+counts).items())), balance)
