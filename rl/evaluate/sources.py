"""Whose answers an evaluation asks for, and with which prompts.

Checkpoints and models are asked in the engines of the run whose settings they are asked under, a
server over its own interface. All input is checked here before an engine starts or a server is
asked for an answer.
"""

import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rewards.composition import Accuracy
from rewards.service import RewardService, accuracy_route
from rewards.text.plugins import with_checked_plugins
from rewards.text.text_rewards import TextRewards
from rl.assembly import gather_inputs, open_engines, resolve_reference
from rl.config.rollout import Thinking
from rl.config.run import Config
from rl.data.fingerprint import stamp, stamp_of_model
from rl.data.media.families import vision_family
from rl.data.media.store import MediaStore
from rl.evaluate.evaluation import By, Encode
from rl.loop.interfaces import ReferenceScorer, Sampler, Scorer
from rl.loop.stages import PROBABILITY, Failure, Prompt, RolloutGroup, Route, not_scorable
from rl.run.checkpoints import MANIFEST, Checkpoint
from rollout.endpoint import open_endpoint, served_model
from rollout.prompts.stream import PromptStream

NEEDS_ENGINE = not_scorable(
    "the probability reward needs log-probabilities of the policy, which an endpoint does not give"
)
Note = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """A source that can be asked."""

    encode: Encode
    sampler: Sampler
    scorer: Scorer
    responses: ReferenceScorer | None = None
    """Says how probable responses are; None where nothing asked for that."""


@dataclass(frozen=True)
class Source:
    """A policy, or the reference that a best-of compares it with: checked, and not yet running."""

    name: str
    """What its evaluations are called."""
    path: str
    """Directory, or URL."""
    identity: Mapping[str, Any]
    """What tells it from any other."""
    open: Callable[[], AbstractAsyncContextManager[Session]]


Sources = tuple[list[Prompt], dict[By, Source]]
"""The prompts, the policy that answers them and, for a best-of, the reference."""


def engine_sources(
    config: Config, split: str, policy: Checkpoint | str, reference: str | None, note: Note
) -> Sources:
    """A run's checkpoint, or a model: its directory, such as rl.export writes, or its name.

    reference: directory or name of the model that a best-of compares the policy with.
    """
    if isinstance(policy, str):
        _refuse_no_model("model", policy)
        settings = config.policy.model_copy(update={"model": policy})
        config = config.model_copy(update={"policy": settings})
    # An evaluation measures accuracy; the preference model would take a GPU and change no figure.
    inputs = gather_inputs(config.without_preference(), is_trained=False)
    for said in inputs.notes:
        note(f"note: {said}")

    @asynccontextmanager
    async def engines(model: Path, state: Any = None) -> AsyncIterator[Session]:
        scores = reference is not None
        async with open_engines(inputs, note, model, state, scores_responses=scores) as services:
            responses = services.engine if scores else None
            yield Session(inputs.encode, services.engine, services.scorer, responses)

    if isinstance(policy, str):
        model, state = inputs.model, None
        name, path = f"model_{Path(policy).resolve().name}", policy
        identity = {"kind": "model", "step": None, "weights": stamp_of_model(model)}
    else:
        model, state = policy.path / "model", policy.progress.get("scorer")
        name, path = policy.path.name, str(policy.path)
        # The manifest holds the digest of every file, so it tells these weights from all others.
        manifest = (policy.path / MANIFEST).read_text(encoding="utf-8")
        identity = {"kind": "checkpoint", "step": policy.step, "weights": stamp(manifest)}
    sources: dict[By, Source] = {
        "policy": Source(name, path, identity, lambda: engines(model, state))
    }
    if reference is not None:
        _refuse_no_model("reference", reference)
        try:
            directory = resolve_reference(inputs.config, reference)
            _refuse_incomparable(model, directory)
        except ValueError as error:
            raise ValueError(f"reference={reference} cannot be compared with: {error}") from error
        name, identity = Path(reference).resolve().name, {"weights": stamp_of_model(directory)}
        sources["reference"] = Source(name, reference, identity, lambda: engines(directory))
    return prompts_of(inputs.stream, split, config.eval.prompts), sources


def _refuse_no_model(key: str, model: str) -> None:
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ValueError(
            f"{key}={model} has no config.json; name a directory that rl.export wrote, a "
            "checkpoint's model/, or any other Hugging Face model directory"
        )


def _refuse_incomparable(policy: Path, reference: Path) -> None:
    """Raise ValueError if the reference is not shown the very tokens and images of the policy."""
    types = [
        json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
        for directory in (policy, reference)
    ]
    if vision_family(types[0]) != vision_family(types[1]):
        raise ValueError(
            f"it is of type {types[1]}, which is not shown images as the policy's {types[0]} is; "
            "name a model of the same family"
        )
    # The reference scores the policy's own token ids: decoding them and encoding them again may
    # give other ones, whose log-probability is not that of the response.
    vocabularies = [
        AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        ).get_vocab()
        for directory in (policy, reference)
    ]
    if differing := sorted(set(vocabularies[0].items()) ^ set(vocabularies[1].items())):
        tokens = list(dict.fromkeys(token for token, _ in differing))
        raise ValueError(
            f"its tokenizer has other tokens than the policy's, {len(tokens)} in all, such as "
            f"{', '.join(map(repr, tokens[:3]))}; name a model of the same tokenizer, "
            "such as the one that training started from"
        )


async def endpoint_sources(
    config: Config, split: str, url: str, served_name: str | None, note: Note
) -> Sources:
    """Any OpenAI-compatible server that has the policy; rules verify its answers in this process.

    Says once how many prompts have no score, and raises ValueError if none has one.
    """
    prompts = prompts_of(PromptStream.open(config), split, config.eval.prompts)
    config = config.model_copy(update={"reward": with_checked_plugins(config.reward)})
    if videos := sum(any(m.kind == "video" for m in prompt.media) for prompt in prompts):
        raise ValueError(
            f"{videos} prompts show videos, of which a server would choose other frames; evaluate "
            "run= or model=, or other data"
        )
    # Said before the server works for hours, not found in a column of unscored responses after it.
    unscored: Counter[Failure] = Counter()
    for prompt in prompts:
        route = accuracy_route(prompt, config.reward.probability is not None)
        if isinstance(route, Failure):
            unscored[route] += 1
        elif route.name == PROBABILITY:
            unscored[NEEDS_ENGINE] += 1
    for why, count in unscored.most_common():
        note(f"note: {count} of {len(prompts)} prompts count as unscored: {why}")
    if unscored.total() == len(prompts):
        raise ValueError(
            f"no prompt of this split can be scored over an endpoint: {next(iter(unscored))}; "
            "evaluate run= or model=, or other data"
        )
    # A server whose model length is too short for the largest budget would answer the other modes
    # and fail every request of this one.
    max_tokens = max(mode.max_tokens for mode in config.modes.values())
    name = await served_model(url, served_name, max_tokens)
    identity = {"kind": "endpoint", "step": None, "url": url, "served_name": name}

    @asynccontextmanager
    async def server() -> AsyncIterator[Session]:
        reward, modes, media = config.reward, config.modes, MediaStore(config.data)
        thinking: dict[str, Thinking] = {m: settings.thinking for m, settings in modes.items()}
        variables = {mode: settings.chat_template_kwargs for mode, settings in modes.items()}
        tags = config.policy.think_tags
        with closing(TextRewards(reward, modes, tags)) as text:
            probability = NoProbability() if reward.probability else None
            scorer = RewardService(reward, modes, text, probability)
            deadline_s = config.rollout.group_timeout_s
            async with open_endpoint(
                url, name, thinking, deadline_s, media, variables, tags
            ) as endpoint:
                # A server renders the chat itself, so there are no prompt tokens to give it.
                yield Session(lambda prompt, mode: (), endpoint, scorer)

    return prompts, {"policy": Source(f"endpoint_{Path(name).name}", url, identity, server)}


class NoProbability:
    """Implements rewards.service.ProbabilitySource where no log-probabilities can be had."""

    async def accuracies(self, group: RolloutGroup, thinking: Thinking) -> list[Accuracy]:
        return [Accuracy(None, Route(PROBABILITY), NEEDS_ENGINE) for _ in group.trajectories]


def prompts_of(stream: PromptStream, split: str, count: int) -> list[Prompt]:
    """The first `count` prompts of a split, in training's own order, or all if there are fewer."""
    if split == "heldout":
        return stream.heldout(count)
    first: dict[str, Prompt] = {}
    for prompt in itertools.chain.from_iterable(map(stream.prompts, itertools.count())):
        # A small data set comes round again within a few steps; a prompt that comes twice says that
        # all have been seen.
        if len(first) == count or prompt.id in first:
            break
        first[prompt.id] = prompt
    return list(first.values())
