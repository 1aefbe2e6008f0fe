"""Claims of responses and their labels, as a divider and a labeller give them.

    Response -> divide -> DividedResponse -> judge -> JudgedResponse

What a model answered is on disk before it counts as done. The order of the responses stays.
"""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from rl.align.claims import language_model, rules
from rl.align.claims.files import from_row, to_row
from rl.align.claims.label_cache import LabelCache
from rl.align.claims.types import DividedResponse, JudgedResponse, Label, Response
from rl.align.report import listed
from rl.config.run import Config
from rl.data.fingerprint import digest
from rl.data.media.names import Medium
from rl.data.media.store import MediaStore
from rl.evaluate.evaluation import for_each
from rl.loop.interfaces import GenerationFailed
from rl.run.jsonl import Journal

# Budget of a divider's reply. What does not fit is divided by rules.
DIVIDER_TOKENS = 1024
# The way in which a labeller is asked. Labels depend on it, so they are kept under it.
LABELLING = "question/1"
# Share of the claims. A labeller that gives no label to more of them is not fit for the task.
MOST_UNLABELLED = 0.5
# Probability of yes and no together. With less a labeller would answer something else, so which of
# the two is more probable says nothing, and the claim has no label.
LEAST_MASS = 0.1


class Assistant(Protocol):
    """A language model that is asked one thing at a time: it divides answers, or labels claims."""

    name: str
    """What claims and labels are kept under: the model, with what else changes its answers."""

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str | None:
        """The likeliest reply, without reasoning; None if the token budget cut it off.

        Raises GenerationFailed if the request is at fault, ValueError if the model is.
        """
        ...

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        """How probable yes and no are as the next token, each summed over its spellings.

        Both may be next to nothing, where the model wants to say something else. Raises
        GenerationFailed if the request is at fault, ValueError if the model is.
        """
        ...


async def divide(
    config: Config,
    responses: Sequence[Response],
    assistant: Assistant | None,
    journal: Journal,
    advance: Callable[[], None],
) -> list[DividedResponse]:
    """Return the responses with their claims; equal answers to a prompt are divided once.

    assistant: divides them, and rules divide what it fails at; None leaves all to the rules. What
    the journal holds is not divided again. `advance` is called for every response.
    """
    # Short answers repeat often, and the reasoning before them does not matter here.
    alike: dict[tuple[str, str | None], list[Response]] = {}
    for response in responses:
        alike.setdefault((response.prompt.id, response.answer), []).append(response)
    records = (from_row(DividedResponse, record) for record in journal.records)
    known = {(each.response.prompt.id, each.response.answer): each for each in records}

    async def divide_alike(key: tuple[str, str | None]) -> None:
        response = alike[key][0]
        if key not in known:
            if assistant is None:
                known[key] = rules.divide(response)
            else:
                ask = functools.partial(assistant.reply, max_tokens=DIVIDER_TOKENS)
                try:
                    known[key] = await language_model.divide(response, ask)
                except GenerationFailed as failed:
                    fallback = f"claims/{failed.failure.reason}"
                    known[key] = rules.divide(response, fallback)
            journal.add(to_row(known[key]))
        for _ in alike[key]:
            advance()

    await for_each(config, alike, divide_alike)
    return [replace(known[each.prompt.id, each.answer], response=each) for each in responses]


async def judge(
    config: Config,
    divided: Sequence[DividedResponse],
    labeller: Assistant,
    media: MediaStore,
    cache: LabelCache,
    advance: Callable[[], None],
) -> tuple[list[JudgedResponse], Counter[str]]:
    """Return the responses with the labels of their claims, and why claims have none, counted.

    A question that many responses lead to is asked once, and never if the cache has its label.
    `advance` is called for every claim.
    """
    # A labeller sees the prompt's media and the question, so these two decide the label.
    claims = [(each.response.prompt, claim.question) for each in divided for claim in each.claims]
    times = Counter((prompt.id, question) for prompt, question in claims)
    prompts = {prompt.id: prompt for prompt, _ in claims}
    labels: dict[tuple[str, str], Label] = {}
    reasons: Counter[str] = Counter()

    async def ask(pair: tuple[str, str]) -> None:
        prompt, question = prompts[pair[0]], pair[1]
        try:
            # Media are told apart by their content, and reading them takes time in which the
            # requests of other questions must go on.
            digests = await asyncio.to_thread(
                lambda: [media.read(medium).digest for medium in prompt.media]
            )
            # Everything that decides the label.
            content = json.dumps([f"{labeller.name}/{LABELLING}", digests, question])
            key = digest(content, size=16)
            label = cache.get(key)
            if label is None:
                label = await labeller.label(question, prompt.media)
                # Also one without mass, or each pass would ask for it again.
                cache.put(key, label)
        except GenerationFailed as failed:
            reasons[failed.failure.reason] += times[pair]
        else:
            if label.p_yes + label.p_no >= LEAST_MASS:
                labels[pair] = label
            else:
                reasons["neither yes nor no"] += times[pair]
        for _ in range(times[pair]):
            advance()

    await for_each(config, times, ask)
    judged = []
    for each in divided:
        pairs = ((each.response.prompt.id, claim.question) for claim in each.claims)
        judged.append(JudgedResponse(each.response, each.claims, tuple(map(labels.get, pairs))))
    return judged, reasons


def refuse_unfit_labeller(
    name: str, judged: Sequence[JudgedResponse], reasons: Counter[str]
) -> None:
    """Raise ValueError if too many claims have no label, and say why they have none."""
    pairs = [pair for each in judged for pair in zip(each.claims, each.labels, strict=True)]
    if reasons.total() > MOST_UNLABELLED * len(pairs):
        example = next(claim.question for claim, label in pairs if label is None)
        raise ValueError(
            f"the labeller {name} gives {reasons.total()} of {len(pairs)} claims no label "
            f"({listed(reasons)}), such as {example!r}; take another with align.labeller. All that "
            "was sampled and divided is kept"
        )
