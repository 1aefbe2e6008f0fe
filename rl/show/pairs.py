"""The preference pairs of an RLAIF-V pass as a page of rl/show.

A card has the pairs of one prompt in one mode. A pair has its chosen and its rejected response side
by side; under each stand its claims with what the labeller found, or, for a pair that was mined
from a ledger, its score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rl.align.claims.files import read_stage
from rl.align.claims.types import (
    Claim,
    JudgedResponse,
    Label,
    PreferencePair,
    RewardedResponse,
)
from rl.data.media.names import Medium
from rl.run.directory import RunDirectory
from rl.show.page import (
    Card,
    Form,
    Html,
    Item,
    Page,
    Picture,
    Room,
    answer_block,
    as_mean,
    as_number,
    as_ranges,
    as_text,
    facts_line,
    folded,
    prompt_blocks,
    sortable,
    table,
    tag,
)

_PAIRS = Form(
    items="pairs", choices=("mode", "task"), measure="gap", sort_keys=("gap", "chosen", "rejected")
)
"""The gap is that between the scores; `chosen` and `rejected` are the scores themselves."""

Side = JudgedResponse | RewardedResponse
PicturesOf = Callable[[Sequence[Medium]], tuple[Picture, ...]]


def holds_pass(run: RunDirectory) -> bool:
    """Whether a run directory is that of an RLAIF-V pass, whatever it has made so far."""
    return not run.ledger_path.exists() and any(_iterations(run.root))


def pair_files(root: Path) -> dict[int, Path]:
    """The pairs of every iteration in order; raises ValueError if there are none yet.

    root: directory of a pass, rl/align/directory.py.
    """
    files = {number: path / "pairs.parquet" for number, path in sorted(_iterations(root))}
    found = {number: path for number, path in files.items() if path.is_file()}
    if not found:
        raise ValueError(
            f"no iteration of {root} has its pairs.parquet; a pass has pairs to show once the "
            "responses of an iteration are judged"
        )
    return found


def _iterations(root: Path) -> Iterator[tuple[int, Path]]:
    for path in root.glob("iteration_*"):
        number = path.name.removeprefix("iteration_")
        if number.isdecimal():
            yield int(number), path


def page_of_pairs(
    name: str, paths: Mapping[int, Path], limit: int, pictures_of: PicturesOf
) -> Page:
    """Read pairs, all of a prompt and mode as long as they fit into `limit`, and at least those of
    one; raises ValueError for a file that holds no pairs.

    name: of the pass. paths: by iteration.
    """
    cards: list[Card] = []
    pairs: list[PreferencePair] = []
    num_groups = 0
    room = Room(limit)
    for iteration, path in paths.items():
        of_iteration = read_stage(path, PreferencePair)
        pairs += of_iteration
        for _, members in groupby(of_iteration, key=lambda pair: (pair.prompt.id, pair.mode)):
            group = tuple(members)
            num_groups += 1
            if room.takes(len(group)):
                cards.append(_card(group, iteration, pictures_of(group[0].prompt.media)))
    modes = tuple(sorted({pair.mode for pair in pairs}))
    return Page(
        name=name,
        extent=f"iteration {as_ranges(list(paths))}",
        form=_PAIRS,
        modes=modes,
        table=_means(pairs, modes),
        num_groups=num_groups,
        num_items=len(pairs),
        cards=tuple(cards),
    )


def _means(pairs: Sequence[PreferencePair], modes: Sequence[str]) -> Html:
    """Counts and means per mode; of claims only where the responses have them."""
    measures = ("score", "claims", "tokens")
    names = [f"{measure} of {side}" for measure in measures for side in ("chosen", "rejected")]
    lines: list[list[str]] = []
    for mode in modes:
        of_mode = [pair for pair in pairs if pair.mode == mode]
        sides = [pair.chosen for pair in of_mode], [pair.rejected for pair in of_mode]
        line = [
            mode,
            f"{len({pair.prompt.id for pair in of_mode}):,}",
            f"{len(of_mode):,}",
            *(as_mean(one.score for one in side) for side in sides),
            *(as_mean(_num_claims(one) for one in side) for side in sides),
            *(as_mean(len(one.response.token_ids) for one in side) for side in sides),
        ]
        lines.append(line)
    return table(["mode", "prompts", "pairs", *names], lines)


def _num_claims(side: Side) -> int | None:
    return len(side.claims) if isinstance(side, JudgedResponse) else None


def _card(pairs: Sequence[PreferencePair], iteration: int, pictures: tuple[Picture, ...]) -> Card:
    prompt = pairs[0].prompt
    facts = (f"iteration {iteration}", f"task {prompt.task}", f"{len(pairs)} pairs")
    return Card(
        prompt_id=prompt.id,
        mode=pairs[0].mode,
        facts=facts,
        prompt=prompt_blocks(prompt.messages, prompt.reference),
        pictures=pictures,
        items=tuple(map(_item, pairs)),
    )


def _item(pair: PreferencePair) -> Item:
    # Rounded, so that a gap from 1.2 to 1.2 can be asked for.
    gap = round(pair.chosen.score - pair.rejected.score, 6)
    facts = [tag("strong", f"gap {as_number(gap)}"), tag("span", pair.id)]
    sides = tag(
        "div",
        _side("chosen", "plus", pair.chosen),
        _side("rejected", "minus", pair.rejected),
        class_="sides",
    )
    data = {
        "mode": pair.mode,
        "task": pair.prompt.task,
        "gap": sortable(gap),
        "chosen": sortable(pair.chosen.score),
        "rejected": sortable(pair.rejected.score),
    }
    return Item((facts_line(facts), sides), data)


def _side(name: str, sign: str, side: Side) -> Html:
    response = side.response
    facts = [
        tag("strong", name, class_=sign),
        tag("span", f"score {as_number(side.score)}"),
        tag("span", f"{len(response.token_ids):,} tokens"),
    ]
    # Without reasoning the text is the answer.
    text = [] if response.text == response.answer else [folded("text", response.text)]
    claims = [claim_list(side.claims, side.labels)] if isinstance(side, JudgedResponse) else []
    return tag("div", facts_line(facts), *text, answer_block(response.answer), *claims)


def claim_list(claims: Iterable[Claim], labels: Iterable[Label | None]) -> Html:
    """Each claim with its verdict, its question and the probabilities of both replies."""
    items = [_claim(*pair) for pair in zip(claims, labels, strict=True)]
    return tag("ul", *items) if items else tag("p", "no claims", class_="problem")


def _claim(claim: Claim, label: Label | None) -> Html:
    return tag(
        "li",
        facts_line(_verdict(label)),
        as_text(claim.text),
        tag("div", as_text(claim.question), class_="question"),
        class_="claim",
    )


def _verdict(label: Label | None) -> Iterator[Html]:
    if label is None:
        yield tag("strong", "no label", class_="problem")
        return
    verdict = ("accepted", "plus") if label.is_accepted else ("rejected", "minus")
    yield tag("strong", verdict[0], class_=verdict[1])
    # Not rounded to places: both may be next to nothing, and which is more must show.
    yield tag("span", f"p(yes) {label.p_yes:.4g}")
    yield tag("span", f"p(no) {label.p_no:.4g}")
