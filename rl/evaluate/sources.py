"""Whose answers an evaluation asks for: a checkpoint's or a model's, in engines of its own, or a
server's; and the reference that a best-of compares it with. All input is checked before anything
heavy runs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.composition import Accuracy
from rl.config.run import Config
from rl.data.fingerprint import stamp, stamp_of_model
from rl.data.media.families import vision_family
from rl.data.media.store import MediaStore
from rl.evaluate.evaluation import Encode, Sampler
from rl.loop.interfaces import ReferenceScorer, Scorer
from rl.loop.stages import PROBABILITY, Failure, Prompt, RolloutGroup, Route, not_scorable
from rl.run.checkpoints import MANIFEST, find_checkpoint

if TYPE_CHECKING:
    from rl.assembly import RunInputs
    from rollout.prompts.stream import PromptStream

NEEDS_ENGINE = not_scorable(
    "the probability reward needs log-probabilities of the policy, which an endpoint does not give"
)

SHOWN_TOKENS = 3

Note = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """The running parts of a policy, or of a reference."""

    encode: Encode
    sampler: Sampler
    scorer: Scorer
    responses: ReferenceScorer | None = None
    """Says how probable responses are; None where nothing asked for that."""


@dataclass(frozen=True)
class Reference:
    """The model that a best-of compares the policy with, asked in the policy's own tokens."""

    name: str
    path: str
    weights: str
    """What tells it from any other."""
    open: Callable[[], AbstractAsyncContextManager[Session]]


@dataclass(frozen=True)
class Source:
    """A policy with the prompts for it: all of it checked, and nothing heavy running yet."""

    name: str
    """What its evaluations are called."""
    path: str
    """Directory, or URL."""
    policy: Mapping[str, Any]
    """What tells it from any other."""
    prompts: Sequence[Prompt]
    open: Callable[[], AbstractAsyncContextManager[Session]]
    reference: Reference | None = None
    """None where no best-of is asked for."""


def checkpoint_source(
    config: Config,
    split: str,
    run: Path,
    step: int | None,
    note: Note,
    reference: str | None = None,
) -> Source:
    """A run's checkpoint; of no `step`, its newest.

    reference: directory or name of the model that a best-of compares it with.
    """
    checkpoint = find_checkpoint(run, step, note)
    material = _gather(config)
    model = checkpoint.path / "model"
    policy = {
        "kind": "checkpoint",
        "step": checkpoint.step,
        "weights": stamp((checkpoint.path / MANIFEST).read_text(encoding="utf-8")),
    }
    return Source(
        name=checkpoint.path.name,
        path=str(checkpoint.path),
        policy=policy,
        prompts=prompts_of(material.stream, split, config.eval.prompts),
        open=lambda: _engines(
            material, model, checkpoint.progress.get("scorer"), note, reference is not None
        ),
        reference=_reference(material, model, reference, note) if reference else None,
    )


def model_source(
    config: Config, split: str, model: str, note: Note, reference: str | None = None
) -> Source:
    """A model directory, such as rl.export writes, or a model's name.

    reference: as for a checkpoint.
    """
    _refuse_no_model("model", model)
    policy = config.policy.model_copy(update={"model": model})
    material = _gather(config.model_copy(update={"policy": policy}))
    return Source(
        name=f"model_{Path(model).resolve().name}",
        path=model,
        policy={"kind": "model", "step": None, "weights": stamp_of_model(material.model)},
        prompts=prompts_of(material.stream, split, config.eval.prompts),
        open=lambda: _engines(material, material.model, None, note, reference is not None),
        reference=_reference(material, material.model, reference, note) if reference else None,
    )


def _refuse_no_model(key: str, model: str) -> None:
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ValueError(
            f"{key}={model} has no config.json; name a directory that rl.export wrote, a "
            "checkpoint's model/, or any other Hugging Face model directory"
        )


def _reference(material: RunInputs, policy: Path, model: str, note: Note) -> Reference:
    """Raises ValueError for a model that cannot score the responses of the one in `policy`."""
    from rl.assembly import resolve_reference

    _refuse_no_model("reference", model)
    try:
        directory = resolve_reference(material.config, model)
        _refuse_other_eyes(policy, directory)
        _refuse_other_tokens(_tokens(policy), _tokens(directory))
    except ValueError as error:
        raise ValueError(f"reference={model} cannot be compared with: {error}") from error
    return Reference(
        name=Path(model).resolve().name,
        path=model,
        weights=stamp_of_model(directory),
        open=lambda: _engines(material, directory, None, note, True),
    )


def _refuse_other_eyes(policy: Path, reference: Path) -> None:
    types = [
        json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
        for directory in (policy, reference)
    ]
    if vision_family(types[0]) != vision_family(types[1]):
        raise ValueError(
            f"it is of type {types[1]}, which is not shown images as the policy's {types[0]} is; "
            "name a model of the same family"
        )


def _tokens(directory: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True
    ).get_vocab()


def _refuse_other_tokens(policy: Mapping[str, int], reference: Mapping[str, int]) -> None:
    """Raise ValueError if not every token id means the same to both models."""
    if differing := sorted(set(policy.items()) ^ set(reference.items())):
        tokens = list(dict.fromkeys(token for token, _ in differing))
        raise ValueError(
            f"its tokenizer has other tokens than the policy's, {len(tokens)} in all, such as "
            f"{', '.join(map(repr, tokens[:SHOWN_TOKENS]))}; name a model of the same tokenizer, "
            "such as the one that training started from"
        )


async def endpoint_source(
    config: Config, split: str, url: str, served_name: str | None, note: Note
) -> Source:
    """A server that has the policy; rules verify its answers in this process."""
    from rewards.text.plugins import with_checked_plugins
    from rollout.endpoint import served_model
    from rollout.prompts.stream import PromptStream

    prompts = prompts_of(PromptStream.open(config), split, config.eval.prompts)
    config = config.model_copy(update={"reward": with_checked_plugins(config.reward)})
    _refuse_unverifiable(prompts, config.reward.probability is not None, note)
    max_tokens = max(mode.max_tokens for mode in config.modes.values())
    name = await served_model(url, served_name, max_tokens)
    return Source(
        name=f"endpoint_{Path(name).name}",
        path=url,
        policy={"kind": "endpoint", "step": None, "url": url, "served_name": name},
        prompts=prompts,
        open=lambda: _server(config, url, name),
    )


def prompts_of(stream: PromptStream, split: str, count: int) -> list[Prompt]:
    """The first `count` prompts of a split, or all where there are fewer.

    Of the training prompts, those that training asks first, each once.
    """
    if split == "heldout":
        return stream.heldout(count)
    asked: dict[str, Prompt] = {}
    for step in itertools.count():
        for prompt in stream.prompts(step):
            if len(asked) == count or prompt.id in asked:
                return list(asked.values())
            asked[prompt.id] = prompt
    raise AssertionError("steps do not end")


def _gather(config: Config) -> RunInputs:
    # Imported here, so that a mistyped command is answered before torch and vLLM load.
    from rl.assembly import gather_inputs

    return gather_inputs(config.without_preference())


@asynccontextmanager
async def _engines(
    material: RunInputs,
    model: Path,
    scorer_state: Mapping[str, Any] | None,
    note: Note,
    scores_responses: bool,
) -> AsyncIterator[Session]:
    """The run's own engines and reward service, with these weights."""
    from rl.assembly import open_engines

    async with open_engines(
        material, note, model, scorer_state, scores_responses=scores_responses
    ) as system:
        responses = system.engine if scores_responses else None
        yield Session(material.encode, system.engine, system.scorer, responses)


@asynccontextmanager
async def _server(config: Config, url: str, name: str) -> AsyncIterator[Session]:
    from rewards.service import RewardService
    from rewards.text.text_rewards import TextRewards
    from rollout.endpoint import open_endpoint

    reward, modes = config.reward, config.modes
    thinking = {name: mode.thinking for name, mode in modes.items()}
    text = TextRewards(reward, modes)
    try:
        probability = NoProbability() if reward.probability else None
        scorer = RewardService(reward, modes, text, probability)
        deadline_s, media = config.rollout.group_timeout_s, MediaStore(config.data)
        async with open_endpoint(url, name, thinking, deadline_s, media) as endpoint:
            yield Session(lambda prompt, mode: (), endpoint, scorer)
    finally:
        text.close()


class NoProbability:
    """Implements rewards.service.ProbabilitySource where no log-probabilities can be had."""

    async def accuracies(self, group: RolloutGroup, thinking: bool) -> list[Accuracy]:
        return [Accuracy(None, Route(PROBABILITY), NEEDS_ENGINE) for _ in group.trajectories]


def _refuse_unverifiable(prompts: Sequence[Prompt], uses_probability: bool, note: Note) -> None:
    """Say once how many prompts have no score, and raise ValueError if none has one."""
    from rewards.service import accuracy_route

    if videos := sum(any(m.kind == "video" for m in prompt.media) for prompt in prompts):
        raise ValueError(
            f"{videos} prompts show videos, of which a server would choose other frames; evaluate "
            "run= or model=, or other data"
        )
    reasons: Counter[Failure] = Counter()
    for prompt in prompts:
        route = accuracy_route(prompt, uses_probability)
        if isinstance(route, Failure):
            reasons[route] += 1
        elif route.name == PROBABILITY:
            reasons[NEEDS_ENGINE] += 1
    for why, count in reasons.most_common():
        note(f"note: {count} of {len(prompts)} prompts count as unscored: {why}")
    if reasons.total() == len(prompts):
        raise ValueError(
            f"no prompt of this split can be scored over an endpoint: {next(iter(reasons))}; "
            "evaluate run= or model=, or other data"
        )
