"""The stages of an RLAIF-V pass that ask a model, each of which goes on where it was cut short.

    requests -> sample -> Response -> divide -> DividedResponse -> judge -> JudgedResponse

What is asked (engines, an endpoint, rules) is given to them; what was answered is on disk before it
counts as done. Responses come back in the order in which they were asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Protocol

from rl.claims import (
    DividedResponse,
    JudgedResponse,
    Label,
    Response,
    as_divided,
    as_response,
    divided_record,
    response_record,
)
from rl.config import Config
from rl.evaluation import Sampler, for_each
from rl.interfaces import GenerationFailed
from rl.journal import Journal
from rl.media import Medium
from rl.stages import Prompt, RolloutGroup, RolloutRequest, Trajectory

Advance = Callable[[], None]
"""Told of each piece of work that is done."""
MOST_UNLABELLED = 0.5
"""Share of the claims; a labeller that gives no label to more of them is not fit for the task."""
LEAST_MASS = 0.1
"""Probability of yes and no together; with less a labeller answers something else, and the claim
has no label."""


class Labels(Protocol):
    """Labels by content, on disk (rewards/claims/label_cache.py)."""

    def get(self, key: str) -> Label | None: ...

    def put(self, labels: Mapping[str, Label]) -> None: ...


async def sample(
    config: Config,
    requests: Sequence[RolloutRequest],
    engine: Sampler,
    final_answer: Callable[[Trajectory], str | None],
    journal: Journal,
    advance: Advance,
) -> tuple[list[Response], Counter[str]]:
    """Return the responses to all requests, and how many groups failed, by reason."""
    known = {
        record["group_id"]: [as_response(stored) for stored in record["responses"]]
        for record in journal.records
    }
    failures: Counter[str] = Counter()

    async def ask(request: RolloutRequest) -> None:
        if request.group_id not in known:
            try:
                group = await engine.generate(request)
            except GenerationFailed as failure:
                failures[str(failure).partition(":")[0]] += 1
            else:
                found = known[request.group_id] = _responses(group, final_answer)
                records = [response_record(response) for response in found]
                journal.add({"group_id": request.group_id, "responses": records})
        advance()

    await for_each(config, requests, ask)
    return [r for request in requests for r in known.get(request.group_id, [])], failures


def _responses(
    group: RolloutGroup, final_answer: Callable[[Trajectory], str | None]
) -> list[Response]:
    request = group.request
    return [
        Response(
            prompt=request.prompt,
            mode=request.mode,
            place=place,
            token_ids=tuple(trajectory.response_token_ids.tolist()),
            text=trajectory.text,
            answer=final_answer(trajectory),
        )
        for place, trajectory in enumerate(group.trajectories)
    ]


async def divide(
    config: Config,
    responses: Sequence[Response],
    divider: Callable[[Response], Awaitable[DividedResponse]],
    journal: Journal,
    advance: Advance,
) -> list[DividedResponse]:
    """Return the responses with their claims; equal answers to a prompt are divided once."""
    alike: dict[tuple[str, str | None], list[Response]] = {}
    for response in responses:
        alike.setdefault((response.prompt.id, response.answer), []).append(response)
    known = {}
    for record in journal.records:
        divided = as_divided(record)
        known[divided.response.prompt.id, divided.response.answer] = divided

    async def ask(key: tuple[str, str | None]) -> None:
        if key not in known:
            known[key] = await divider(alike[key][0])
            journal.add(divided_record(known[key]))
        for _ in alike[key]:
            advance()

    await for_each(config, alike, ask)
    found = (known[response.prompt.id, response.answer] for response in responses)
    return [
        DividedResponse(response, one.claims, one.divider, one.fallback)
        for response, one in zip(responses, found, strict=True)
    ]


async def judge(
    config: Config,
    divided: Sequence[DividedResponse],
    label: Callable[[str, Sequence[Medium]], Awaitable[Label]],
    key_of: Callable[[Prompt, str], str],
    labels: Labels,
    advance: Advance,
) -> tuple[list[JudgedResponse], Counter[str]]:
    """Return the responses with the labels of their claims, and what gave claims none, by reason.

    key_of: prompt and question to what their label is kept under; asked in threads. A question
    that many responses lead to is asked once; `advance` is told of every claim.
    """
    claims = [(one.response.prompt, claim.question) for one in divided for claim in one.claims]
    asked: dict[tuple[str, str], tuple[Prompt, str]] = {}
    for prompt, question in claims:
        asked.setdefault((prompt.id, question), (prompt, question))
    times = Counter((prompt.id, question) for prompt, question in claims)
    found: MutableMapping[tuple[str, str], Label] = {}
    reasons: Counter[str] = Counter()

    async def ask(pair: tuple[str, str]) -> None:
        prompt, question = asked[pair]
        try:
            # Reading media, to tell them by their content, must not hold up the others.
            key = await asyncio.to_thread(key_of, prompt, question)
            known = labels.get(key)
            if known is None:
                known = await label(question, prompt.media)
                labels.put({key: known})
        except GenerationFailed as failure:
            reasons[str(failure).partition(":")[0]] += times[pair]
        else:
            found[pair] = known
            if not is_answered(known):
                reasons["neither yes nor no"] += times[pair]
        for _ in range(times[pair]):
            advance()

    await for_each(config, asked, ask)
    judged = [
        JudgedResponse(
            one.response,
            one.claims,
            tuple(
                _usable(found.get((one.response.prompt.id, claim.question))) for claim in one.claims
            ),
        )
        for one in divided
    ]
    return judged, reasons


def refuse_unfit_labeller(
    name: str, judged: Sequence[JudgedResponse], reasons: Counter[str]
) -> None:
    """Raise ValueError if too many claims have no label, and say why they have none."""
    pairs = [pair for one in judged for pair in zip(one.claims, one.labels, strict=True)]
    if reasons.total() <= MOST_UNLABELLED * len(pairs):
        return
    shown = next(claim.question for claim, label in pairs if label is None)
    raise ValueError(
        f"the labeller {name} gives {reasons.total()} of {len(pairs)} claims no label "
        f"({listed(reasons)}), such as {shown!r}; take another with align.labeller. All that was "
        "sampled and divided is kept"
    )


def refuse_no_pairs(counts: Mapping[str, int]) -> None:
    """Raise ValueError if no preference pair is left.

    counts: what became of responses and pairs, as rewards.claims.pairs counts them.
    """
    if not counts.get("pairs/kept"):
        raise ValueError(
            f"no preference pair is left: {listed(counts)}; lower align.gap, or start again with "
            "more align.prompts, more align.responses or a higher align.temperature. All that was "
            "sampled and labelled is kept until then"
        )


def listed(counts: Mapping[str, int]) -> str:
    """Example: listed({"timeout": 2, "empty": 1}) == "2 timeout, 1 empty" """
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "nothing"


def is_answered(label: Label) -> bool:
    """Whether the labeller said yes or no at all."""
    return label.p_yes + label.p_no >= LEAST_MASS


def _usable(label: Label | None) -> Label | None:
    return label if label is not None and is_answered(label) else None
