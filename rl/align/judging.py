"""Claims of responses and their labels, as a divider and a labeller give them.

    Response -> divide -> DividedResponse -> judge -> JudgedResponse

What was answered is on disk before it counts as done. Responses come back in the order in which
they were given.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from rl.align.claims import language_model, rules
from rl.align.claims.files import from_row, read_stage, to_row, write_stage
from rl.align.claims.label_cache import LabelCache, label_key
from rl.align.claims.types import (
    DividedResponse,
    JudgedResponse,
    Label,
    Response,
)
from rl.align.console import Advance, listed
from rl.align.directory import claims_path, labels_path
from rl.align.heldout import heldout_responses
from rl.align.parts import Iteration
from rl.config.run import Config
from rl.data.media.names import Medium
from rl.data.media.store import MediaStore
from rl.evaluate.evaluation import for_each
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import Prompt
from rl.run.jsonl import Journal

DIVIDER_TOKENS = 1024
"""Budget of a divider's reply; what does not fit is divided by rules."""
LABELLING = "question/1"
"""How a labeller is asked, which its labels depend on."""
MOST_UNLABELLED = 0.5
"""Share of the claims; a labeller that gives no label to more of them is not fit for the task."""
LEAST_MASS = 0.1
"""Probability of yes and no together; with less a labeller answers something else, and the claim
has no label."""


Divider = Callable[[Response], Awaitable[DividedResponse]]


class Assistant(Protocol):
    """A language model that is asked one thing at a time: it divides answers, or labels claims."""

    name: str
    """What claims and labels are kept under: the model, with what else changes its answers."""

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str | None:
        """The likeliest reply, without reasoning; None if the token budget cut it off.

        Raises rl.loop.interfaces.GenerationFailed if the request is at fault.
        """
        ...

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        """How probable yes and no are as the next token, each summed over its spellings.

        Both may be next to nothing, where the model wants to say something else. Raises
        rl.loop.interfaces.GenerationFailed if the request is at fault, ValueError if the model is.
        """
        ...


class Labels(Protocol):
    """Labels by content, on disk (rl/align/claims/label_cache.py)."""

    def get(self, key: str) -> Label | None: ...

    def put(self, key: str, label: Label) -> None: ...


async def ask_assistants(iteration: Iteration, heldout: Path) -> None:
    """Leave claims and labels of the held-out responses of one policy and, with those before
    alignment, of the responses that pairs come from."""
    files, parts = iteration.files, iteration.parts
    # As an assistant the policy is always the one before the pass, so that rates compare.
    policy, cluster = parts.origin.model, iteration.cluster
    roots = {heldout: heldout_responses(iteration, heldout)}
    if heldout == files.before and iteration.config.align.mine is None:
        roots[files.root] = read_stage(files.responses, Response)
    if undivided := [root for root in roots if not claims_path(root).exists()]:
        async with _open_divider(iteration, policy) as divider:
            for root in undivided:
                await _divide(iteration, root, roots[root], divider)
    if unjudged := [root for root in roots if not labels_path(root).exists()]:
        async with parts.labeller.open(policy, cluster) as labeller:
            for root in unjudged:
                await _judge(
                    iteration, root, read_stage(claims_path(root), DividedResponse), labeller
                )


@asynccontextmanager
async def _open_divider(iteration: Iteration, policy: Path) -> AsyncIterator[Divider]:
    source = iteration.parts.divider
    if source is None:
        yield _by_rules
        return
    async with source.open(policy, iteration.cluster) as assistant:
        yield functools.partial(_by_model, assistant)


async def _by_rules(response: Response) -> DividedResponse:
    return rules.divide(response)


async def _by_model(assistant: Assistant, response: Response) -> DividedResponse:
    try:
        return await language_model.divide(
            response, lambda messages: assistant.reply(messages, DIVIDER_TOKENS)
        )
    except GenerationFailed as failed:
        return rules.divide(response, fallback=f"claims/{failed.failure.reason}")


async def _divide(
    iteration: Iteration, root: Path, responses: Sequence[Response], divider: Divider
) -> None:
    console = iteration.console
    with (
        Journal(root / "claims.jsonl") as journal,
        console.stage(f"responses divided ({root.name})", len(responses)) as advance,
    ):
        divided = await divide(iteration.config, responses, divider, journal, advance)
        write_stage(claims_path(root), DividedResponse, divided)
        journal.remove()
    fallbacks = Counter(one.fallback for one in divided if one.fallback)
    console.note_counts("responses divided by rules instead", fallbacks)
    if not any(one.claims for one in divided):
        console.note(f"none of the {len(divided)} responses states a fact")


async def _judge(
    iteration: Iteration, root: Path, divided: Sequence[DividedResponse], labeller: Assistant
) -> None:
    config, console = iteration.config, iteration.console
    num_claims = sum(len(one.claims) for one in divided)
    store, name = MediaStore(config.data), f"{labeller.name}/{LABELLING}"

    def key_of(prompt: Prompt, question: str) -> str:
        return label_key(name, [store.read(medium).digest for medium in prompt.media], question)

    labels = LabelCache(iteration.parts.directory.labels)
    with console.stage(f"claims judged ({root.name})", num_claims) as advance:
        judged, reasons = await judge(config, divided, labeller.label, key_of, labels, advance)
    console.note_counts("claims without a label", reasons)
    refuse_unfit_labeller(labeller.name, judged, reasons)
    write_stage(labels_path(root), JudgedResponse, judged)


async def divide(
    config: Config,
    responses: Sequence[Response],
    divider: Divider,
    journal: Journal,
    advance: Advance,
) -> list[DividedResponse]:
    """Return the responses with their claims; equal answers to a prompt are divided once."""
    alike: dict[tuple[str, str | None], list[Response]] = {}
    for response in responses:
        alike.setdefault((response.prompt.id, response.answer), []).append(response)
    known = {}
    for record in journal.records:
        divided = from_row(DividedResponse, record)
        known[divided.response.prompt.id, divided.response.answer] = divided

    async def ask(key: tuple[str, str | None]) -> None:
        if key not in known:
            known[key] = await divider(alike[key][0])
            journal.add(to_row(known[key]))
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
                labels.put(key, known)
        except GenerationFailed as failed:
            reasons[failed.failure.reason] += times[pair]
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


def is_answered(label: Label) -> bool:
    """Whether the labeller said yes or no at all."""
    return label.p_yes + label.p_no >= LEAST_MASS


def _usable(label: Label | None) -> Label | None:
    return label if label is not None and is_answered(label) else None
