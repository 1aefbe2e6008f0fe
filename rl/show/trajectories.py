"""The trajectories of a ledger step as a page: a card for each group, an item for each of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rl.run.ledger import LedgerRow
from rl.show.page import (
    Card,
    Form,
    Html,
    Item,
    Page,
    Picture,
    answer_block,
    as_mean,
    as_number,
    as_ranges,
    facts_line,
    folded,
    prompt_blocks,
    sortable,
    table,
    tag,
)


@dataclass(frozen=True)
class Group:
    """The trajectories of one prompt in one mode."""

    rows: tuple[LedgerRow, ...]
    pictures: tuple[Picture, ...]


_TRAJECTORIES = Form(
    items="trajectories",
    choices=("mode", "task", "route", "finish"),
    measure="reward",
    sort_keys=("reward", "advantage", "tokens"),
    flags=(("failed", "only failures"),),
)


def page_of_trajectories(
    name: str, steps: Sequence[int], groups: Iterable[Group], rows: Sequence[LedgerRow]
) -> Page:
    """The page of steps of a ledger.

    groups: those that are shown. rows: every trajectory of the steps, for counts and means; their
    texts may be left out.
    """
    modes = tuple(sorted({row.mode for row in rows}))
    return Page(
        name=name,
        extent=f"step {as_ranges(steps)}",
        form=_TRAJECTORIES,
        modes=modes,
        table=_means(rows, modes),
        num_groups=_num_groups(rows),
        num_items=len(rows),
        cards=tuple(map(_card_of, groups)),
    )


def _num_groups(rows: Iterable[LedgerRow]) -> int:
    return len({(row.step, row.group_id) for row in rows})


def _means(rows: Sequence[LedgerRow], modes: Sequence[str]) -> Html:
    """Counts and means per mode, over the trajectories that have the figure."""
    parts = sorted({part for row in rows for part in row.parts})
    names = ["mode", "groups", "trajectories", "failed", "truncated", "tokens", "reward"]
    lines: list[list[str]] = []
    for mode in modes:
        of_mode = [row for row in rows if row.mode == mode]
        line = [
            mode,
            f"{_num_groups(of_mode):,}",
            f"{len(of_mode):,}",
            f"{sum(row.failure is not None for row in of_mode):,}",
            f"{fmean(row.finish_reason == 'length' for row in of_mode):.1%}",
            f"{fmean(row.num_tokens for row in of_mode):,.1f}",
            as_mean(row.reward for row in of_mode),
            *(as_mean(row.parts.get(part) for row in of_mode) for part in parts),
            as_mean((row.mismatch for row in of_mode), _small),
        ]
        lines.append(line)
    return table([*names, *parts, "mismatch"], lines)


def _card_of(group: Group) -> Card:
    rows, first = group.rows, group.rows[0]
    facts = (
        f"group {first.group_id}",
        f"step {first.step}",
        f"task {first.task}",
        _versions(rows),
        f"{len(rows)} trajectories",
        f"mean reward {as_mean(row.reward for row in rows)}",
    )
    return Card(
        prompt_id=first.prompt_id,
        mode=first.mode,
        facts=facts,
        prompt=prompt_blocks(json.loads(first.messages), first.reference),
        pictures=group.pictures,
        items=tuple(_trajectory(row, place) for place, row in enumerate(rows)),
    )


def _versions(rows: Iterable[LedgerRow]) -> str:
    versions = {version for row in rows for version in (row.first_version, row.last_version)}
    first, last = min(versions), max(versions)
    return f"version {first}" if first == last else f"versions {first} to {last}"


def _trajectory(row: LedgerRow, place: int) -> Item:
    content = (
        facts_line([tag("span", f"#{place + 1}"), *_facts(row)]),
        facts_line(_parts(row)),
        *([] if row.reasoning is None else [folded("reasoning", row.reasoning)]),
        answer_block(row.answer),
        *([] if row.preference_answer is None else [_preference(row.preference_answer)]),
    )
    data = {
        "mode": row.mode,
        "task": row.task,
        "route": row.route,
        "finish": row.finish_reason,
        "failed": None if row.failure is None else "",
        "reward": sortable(row.reward),
        "advantage": sortable(row.advantage),
        "tokens": str(row.num_tokens),
    }
    return Item(content, data)


def _facts(row: LedgerRow) -> Iterator[Html]:
    reward = "no reward" if row.reward is None else f"reward {as_number(row.reward)}"
    yield tag("strong", reward)
    if row.advantage is None:
        yield tag("span", "no advantage: left out of the update")
    else:
        sign = "plus" if row.advantage > 0 else "minus" if row.advantage < 0 else None
        yield tag("strong", f"advantage {as_number(row.advantage, '+')}", class_=sign)
    yield tag("span", f"{row.num_tokens:,} tokens")
    yield tag("span", row.finish_reason, class_=None if row.finish_reason == "stop" else "problem")
    if row.first_version != row.last_version:
        yield tag("span", _versions([row]))
    if row.mismatch is not None:
        yield tag("span", f"mismatch {_small(row.mismatch)}")
    if row.failure is not None:
        yield tag("strong", f"failure: {row.failure}", class_="problem")


def _parts(row: LedgerRow) -> Iterator[Html]:
    if row.route:
        yield tag("span", f"route {row.route}", class_="part")
    for name, value in sorted(row.parts.items()):
        yield tag("span", f"{name} {as_number(value)}", class_="part")


def _preference(answer: str) -> Html:
    return folded("what the preference model saw, beside the messages", answer)


def _small(value: float) -> str:
    return f"{value:.2g}"
