"""Builds the running parts from a configuration: what training and evaluation share.

Order matters: everything that can refuse bad input comes before Ray, and Ray before any engine.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from policy.builtin.names import builtin_policy, builtin_reward_model
from policy.learner.learner import RayLearner
from policy.models.cache import find_model
from policy.models.checks import refuse_longer_than_model
from policy.models.family import open_visual_inputs
from policy.models.loading import resolve_model
from rewards.preference.actors import RewardModelClient
from rewards.preference.judge import Judge, JudgePrompt, check_judge
from rewards.preference.preference import PreferenceModel
from rewards.preference.reward_model import check_reward_model
from rewards.probability import ProbabilityReward
from rewards.rules.routes import ROUTES
from rewards.service import PreferredAnswers, RewardService, accuracy_route
from rewards.text.actor import TextRewardClient
from rewards.text.plugins import with_checked_plugins
from rl.config.run import Config, RewardConfig, SourceConfig
from rl.config.visible_gpus import count_visible_gpus
from rl.data.media.names import MediaError
from rl.loop.loop import train_request
from rl.loop.stages import PROBABILITY, Canary, Failure, Prompt, Route
from rl.system.actors import ActorPlaces
from rl.system.cluster import Cluster, open_cluster
from rollout.chat import ChatTemplate, refuse_oversized
from rollout.engines.pool import EnginePool
from rollout.engines.worker import WorkerSettings
from rollout.prompts.dataset import Quarantined
from rollout.prompts.stream import PromptStream
from rollout.splice import Splice

CANARY_TOKENS = 64
CHECKED_MEDIA_PROMPTS = 64
"""Prompts whose images and videos are read before the run, to see how long they are."""


@dataclass(frozen=True)
class Material:
    """What is known before anything heavy starts: model, prompts, templates."""

    config: Config
    model: Path
    stream: PromptStream
    chat: ChatTemplate
    heldout: tuple[Prompt, ...]
    routes: Mapping[Route | Failure, int]
    """How many of the checked prompts each accuracy reward takes, or why it cannot."""
    preference_model: Path | None
    """Directory of the reward model or judge; None where there is none."""

    def encode(self, prompt: Prompt, mode: str) -> tuple[int, ...]:
        """Prompt token ids up to where sampling starts in this mode."""
        return self.chat.prompt_token_ids(prompt, self.config.modes[mode].thinking)

    @property
    def quarantined(self) -> Sequence[Quarantined]:
        """Rows of the data that are left out, because their images or videos cannot be used."""
        return self.stream.quarantined

    @property
    def thinking(self) -> dict[str, bool]:
        return {name: mode.thinking for name, mode in self.config.modes.items()}


@dataclass
class System:
    """The running parts."""

    cluster: Cluster
    engine: EnginePool
    scorer: RewardService
    _learner: RayLearner | None
    _closers: Sequence[Callable[[], Awaitable[None]]]

    @property
    def learner(self) -> RayLearner:
        """Only a system that was started to train has one."""
        assert self._learner is not None
        return self._learner

    async def close(self) -> None:
        """Stop every process, whatever state the others are in."""
        await asyncio.gather(*(close() for close in self._closers), return_exceptions=True)
        self.cluster.close()


def gather_material(config: Config) -> Material:
    """Load model directory, templates and prompts; raises ValueError for input that cannot run."""
    if config.resources.ray_address is None and config.resources.gpus > count_visible_gpus():
        raise ValueError(
            f"resources.gpus asks for {config.resources.gpus} GPUs, this machine shows "
            f"{count_visible_gpus()}; take a smaller scale=, or join a Ray cluster with "
            "resources.ray_address=auto"
        )
    stream = PromptStream.open(config)
    # A data set of text alone need not be gone through for it.
    may_show = config.reward.preference is not None and config.data.shows_media
    if may_show and any(prompt.media for prompt in stream.checked()):
        raise ValueError(
            "reward.preference reads text only, and these prompts show images or videos; set "
            "reward.preference=null"
        )
    model = resolve_model(builtin_policy(config.policy.model), untie=config.resources.gpus == 0)
    refuse_longer_than_model(model, config.rollout.max_model_length)
    chat = ChatTemplate(str(model))
    chat.require_switch(mode.thinking for mode in config.modes.values())
    refuse_oversized(config, stream, chat, _MediaTokens(model, config.data, chat))
    heldout = tuple(stream.heldout(config.eval.prompts))
    reward = with_checked_plugins(config.reward)
    config = config.model_copy(update={"reward": reward})
    if unknown := sorted(set(reward.task_weights) - {*ROUTES, PROBABILITY}):
        raise ValueError(
            f"reward.task_weights names unknown tasks {unknown}; there are "
            f"{', '.join((*ROUTES, PROBABILITY))}"
        )
    routes = count_routes(stream, reward)
    preference_model = _resolve_preference_model(config)
    return Material(config, model, stream, chat, heldout, routes, preference_model)


def resolve_reference(config: Config, model: str) -> Path:
    """Directory of a second model that the run's engines can hold; raises ValueError if none."""
    directory = resolve_model(builtin_policy(model), untie=config.resources.gpus == 0)
    refuse_longer_than_model(directory, config.rollout.max_model_length)
    return directory


class _MediaTokens:
    """How many tokens the media of a prompt take, besides their markers.

    It reads and lays them out as the learner does, which takes time, so only the first prompts
    with media are looked at: a later one that is too long is dropped when it is asked.
    """

    def __init__(self, model: Path, data: SourceConfig, chat: ChatTemplate) -> None:
        self._inputs = open_visual_inputs(model, data)
        self._chat = chat
        self._left = CHECKED_MEDIA_PROMPTS

    def __call__(self, prompt: Prompt) -> int:
        if not prompt.media or self._inputs is None or not self._left:
            return 0
        self._left -= 1
        token_ids = self._chat.prompt_token_ids(prompt, thinking=False)
        try:
            return len(self._inputs.expanded(token_ids, prompt.media)) - len(token_ids)
        except MediaError:
            # What the headers did not tell: its group is dropped, counted and replaced.
            return 0


def _resolve_preference_model(config: Config) -> Path | None:
    preference = config.reward.preference
    if preference is None:
        return None
    path = find_model(builtin_reward_model(preference.model), "the preference model")
    (check_judge if preference.kind == "judge" else check_reward_model)(path)
    return path


def count_routes(stream: PromptStream, reward: RewardConfig) -> Counter[Route | Failure]:
    """Count the prompts by accuracy reward; raises ValueError if no reference can be checked."""
    routes: Counter[Route | Failure] = Counter()
    unknown: Counter[str] = Counter()
    for prompt in stream.checked():
        known = ("auto", *ROUTES, PROBABILITY) if reward.probability else ("auto", *ROUTES)
        if prompt.task in known:
            routes[accuracy_route(prompt, reward.probability is not None)] += 1
        else:
            unknown[prompt.task] += 1
    if unknown:
        raise ValueError(
            f"{unknown.total()} prompts name a task that no reward takes, such as "
            f"{next(iter(unknown))!r}; data.columns.task takes auto, {', '.join(ROUTES)}, and "
            f"{PROBABILITY} where reward.probability is set"
        )
    is_needed = reward.weights.accuracy != 0
    if is_needed and all(isinstance(route, Failure) for route in routes):
        raise ValueError(
            "no reference answer can be checked, so nothing could be rewarded: "
            f"{routes.most_common(1)[0][0]}; check data.columns.reference and data.columns.task, "
            "or set reward.probability={} for references in natural language"
        )
    return routes


@asynccontextmanager
async def open_engines(
    material: Material,
    note: Callable[[str], None],
    model: Path,
    scorer_state: Mapping[str, Any] | None = None,
    cluster: Cluster | None = None,
    scores_responses: bool = False,
) -> AsyncIterator[System]:
    """The run's engines with the weights in `model`, and its reward service; without a learner.

    scorer_state: of the checkpoint that the weights are of. The rest is as for `start_system`.
    """
    system = await start_system(
        material, note, False, model, cluster, scores_responses=scores_responses
    )
    try:
        if scorer_state is not None:
            system.scorer.load(scorer_state)
        yield system
    finally:
        await system.close()


async def start_system(
    material: Material,
    phase: Callable[[str], None],
    train: bool = True,
    model: Path | None = None,
    cluster: Cluster | None = None,
    scores_responses: bool = False,
) -> System:
    """Start Ray, engines, reward service and (to train) the learner, side by side.

    model: where the engines load their first weights from; by default the policy's own directory.
    cluster: one that outlives the system; by default it opens its own. scores_responses: whether
    the engines are asked how probable responses are, also without a reward that asks them.
    """
    config = material.config
    if cluster is None:
        phase("starting Ray")
        cluster = open_cluster(config)
    else:
        cluster = dataclasses.replace(cluster, is_own=False)
    closers: list[Callable[[], Awaitable[None]]] = []
    try:
        ranks = f", {config.policy.ranks} ranks" if train else ""
        phase(f"starting {config.rollout.workers} vLLM engines{ranks}")
        text = TextRewardClient.start(config.reward, config.modes)
        closers.append(text.close)
        learner = None
        if train:
            learner = RayLearner(config, material.model.absolute(), cluster)
            closers.append(learner.close)
        scores = scores_responses or config.reward.probability is not None
        engine = await _create_engines(material, cluster, learner, model or material.model, scores)
        closers.append(engine.close)
        await _start_together(engine, learner, config.resources.colocate)
        preference = await _start_preference(material, cluster, closers)
        if learner is not None:
            phase("connecting learner and engines")
            engine.canary = await _sample_canary(material, engine)
            await learner.connect_engines(engine.actors, engine.canary)
        probability = _probability(material, engine, learner)
        preferred = None if preference is None else PreferredAnswers(preference)
        scorer = RewardService(config.reward, config.modes, text, probability, preferred)
    except BaseException:
        await asyncio.gather(*(close() for close in closers), return_exceptions=True)
        cluster.close()
        raise
    return System(cluster, engine, scorer, learner, tuple(closers))


def _probability(
    material: Material, engine: EnginePool, learner: RayLearner | None
) -> ProbabilityReward | None:
    config = material.config.reward.probability
    if config is None:
        return None
    # Evaluation has no learner; both scorers give the same numbers.
    scorer = learner if config.scorer == "learner" and learner is not None else engine
    splice = Splice(material.chat, material.config.rollout.max_model_length)
    return ProbabilityReward(config, scorer, splice)


async def _start_preference(
    material: Material, cluster: Cluster, closers: list[Callable[[], Awaitable[None]]]
) -> PreferenceModel | None:
    """closers: gets what will end the model's processes."""
    config, path = material.config.reward.preference, material.preference_model
    if config is None or path is None:
        return None
    bundles = cluster.placement.preference_bundles
    strategies = (PlacementGroupSchedulingStrategy(cluster.group, bundle) for bundle in bundles)
    places = ActorPlaces(config.cpus, config.gpus, tuple(strategies))
    if config.kind == "judge":
        engine = EnginePool.of_judge(config, path, places)
        closers.append(engine.close)
        await engine.start()
        return Judge(JudgePrompt(path), engine, engine.max_model_length)
    model = await RewardModelClient.start(path, places, config.dtype, config.deadline_s)
    closers.append(model.close)
    return model


async def _create_engines(
    material: Material,
    cluster: Cluster,
    learner: RayLearner | None,
    model: Path,
    scores_references: bool,
) -> EnginePool:
    config = material.config
    settings = WorkerSettings(
        # Absolute: an actor of a joined Ray starts in another working directory.
        model=str(model.absolute()),
        dtype=config.policy.dtype,
        max_model_length=config.rollout.max_model_length,
        tensor_parallel=config.rollout.tensor_parallel,
        transport=config.transport,
        thinking=material.thinking,
        seed=config.seed,
        scores_references=scores_references,
        engine=config.rollout.engine,
        data=config.data,
    )
    devices = None
    if learner is not None and config.resources.colocate:
        devices = await learner.devices_by_engine(config.rollout.tensor_parallel)
    bundles = cluster.placement.engine_bundles
    return EnginePool.of_run(config, settings, cluster.group, bundles, devices)


async def _start_together(engine: EnginePool, learner: RayLearner | None, colocate: bool) -> None:
    if learner is None:
        await engine.start()
    elif colocate:
        # vLLM takes every change of free memory while it starts for its own.
        await learner.start()
        await engine.start()
    else:
        await asyncio.gather(engine.start(), learner.start())


async def _sample_canary(material: Material, engine: EnginePool) -> Canary:
    """One response in the mode with the largest budget, cut to CANARY_TOKENS."""
    modes = material.config.modes
    mode = max(modes, key=lambda name: modes[name].max_tokens)
    request = train_request(material.config, material.encode, "canary", material.heldout[0], mode)
    # Scoring the canary samples one token more, which must fit too.
    budget = max(1, min(request.max_tokens - 1, CANARY_TOKENS))
    request = dataclasses.replace(request, n=1, max_tokens=budget)
    (trajectory,) = (await engine.generate(request)).trajectories
    return Canary(request, trajectory)
