"""From a configuration to what runs: inputs that are checked, then engines, rewards and learner.

    Config -> gather_inputs -> RunInputs -> open_training -> TrainingServices   (rl.launch)
                                         -> open_engines  -> SamplingServices   (the other commands)

Order matters: everything that can refuse bad input comes before Ray, and Ray before any engine.
"""

import asyncio
import dataclasses
import importlib.util
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import disable_progress_bars
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
from rl.config.recipe import count_visible_gpus
from rl.config.reward import RewardConfig
from rl.config.run import Config
from rl.data.media.names import MediaError
from rl.loop.interfaces import WorkerFailed
from rl.loop.loop import train_request
from rl.loop.publish import at_next_publish
from rl.loop.stages import PROBABILITY, Canary, Failure, Prompt, Route
from rl.run.files import stack_versions
from rl.run.terminal import counted
from rl.system.actors import ActorPlaces
from rl.system.cluster import Cluster, open_cluster
from rl.system.memory_estimate import BYTES, count_parameters
from rl.system.node_checks import NodeModel, NodeNeeds, bundle_nodes, check_nodes
from rl.system.placement import divide_workers
from rl.system.supervision import Supervisor
from rollout.chat import ChatTemplate, leave_out_unaskable
from rollout.engines.pool import EnginePool
from rollout.engines.worker import WorkerSettings
from rollout.prompts.stream import PromptStream
from rollout.splice import Splice

CANARY_TOKENS = 64
CHECKED_MEDIA_PROMPTS = 64
"""Prompts whose images and videos are read before the run, to see how long they are."""


class Rows(NamedTuple):
    """What training prompts have in common."""

    source: str
    """The data set or task that they are of."""
    route: Route | Failure
    """The accuracy reward that they take, or why none can."""
    mode: str | None
    """The mode that they are pinned to; None where it is drawn."""


@dataclass(frozen=True)
class RunInputs:
    """What a run works on, all of it checked before anything heavy starts."""

    config: Config
    model: Path
    """Directory of the policy that training starts from."""
    stream: PromptStream
    chat: ChatTemplate
    heldout: tuple[Prompt, ...]
    rows: Counter[Rows]
    """How many training prompts there are of each kind; a sample of an endless source."""
    preference_model: Path | None
    """Directory of the reward model or judge; None where there is none."""
    notes: tuple[str, ...] = ()
    """What a person should know of the model and its chat template."""

    def encode(self, prompt: Prompt, mode: str) -> tuple[int, ...]:
        """Prompt token ids up to where sampling starts in this mode."""
        asked = self.config.modes[mode]
        return self.chat.prompt_token_ids(prompt, asked.thinking, asked.chat_template_kwargs)


@dataclass(frozen=True)
class SamplingServices:
    """What runs for a policy that is not trained: its engines and its reward service."""

    engine: EnginePool
    scorer: RewardService
    reward_actors: tuple[Any, ...]
    """Ray actors of the reward service."""


@dataclass(frozen=True)
class TrainingServices(SamplingServices):
    """What runs for a policy in training."""

    learner: RayLearner
    supervisor: Supervisor


def gather_inputs(config: Config, is_trained: bool = True) -> RunInputs:
    """Load model directory, templates and prompts; raises ValueError for input that cannot run.

    is_trained: whether the policy learns; one that only answers may be of more kinds, and logs to
    nobody.
    """
    refuse_missing_gpus(config)
    if is_trained:
        refuse_missing_wandb(config)
    stream = open_prompts(config)
    preference_model = find_preference_model(config.reward, stream)
    # After a weight update vLLM on CPU keeps the old output layer of a model whose embeddings are
    # tied, so there the run works on an untied copy.
    name, on_cpu = builtin_policy(config.policy.model), config.resources.gpus == 0
    model = resolve_model(name, untie=on_cpu, is_trained=is_trained)
    chat, notes = open_chat(config, model, stream)
    heldout = tuple(stream.heldout(config.eval.prompts))
    reward = checked_rewards(config.reward)
    rows = count_rows(stream, reward)
    config = config.model_copy(update={"reward": reward})
    return RunInputs(config, model, stream, chat, heldout, rows, preference_model, notes)


# The pieces of gather_inputs, which a dry run tries one by one (rl/launch/preflight.py). Each of
# them raises ValueError for input that cannot run.


def refuse_missing_gpus(config: Config) -> None:
    gpus, visible = config.resources.gpus, count_visible_gpus()
    if config.resources.ray_address is None and gpus > visible:
        raise ValueError(
            f"resources.gpus asks for {gpus} GPUs, this machine shows {visible}; take a smaller "
            "scale=, or join a Ray cluster with resources.ray_address=auto"
        )


def refuse_missing_wandb(config: Config) -> None:
    project = config.log.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"log.wandb_project={project} needs the wandb package, which is not installed; "
            "install hybrid-rl[wandb], or leave log.wandb_project out"
        )


def open_prompts(config: Config) -> PromptStream:
    # Those of the library of data sets would stand between the run's own lines.
    disable_progress_bars()
    return PromptStream.open(config)


def open_chat(
    config: Config, model: Path, stream: PromptStream
) -> tuple[ChatTemplate, tuple[str, ...]]:
    """The chat template of a model directory, and what a person should know of how it asks.

    Prompts of the stream that are too long for it are left out.
    """
    refuse_longer_than_model(model, config.rollout.max_model_length)
    chat = ChatTemplate(str(model), config.policy.think_tags)
    notes = tuple(chat.check_policy(config.modes))
    leave_out_unaskable(config, stream, chat, media_token_counter(config, model, chat))
    return chat, notes


def checked_rewards(config: RewardConfig) -> RewardConfig:
    """The same, with plug-ins that are known to be callable."""
    reward = with_checked_plugins(config)
    if unknown := sorted(set(reward.task_weights) - {*ROUTES, PROBABILITY}):
        raise ValueError(
            f"reward.task_weights names unknown tasks {unknown}; there are "
            f"{', '.join((*ROUTES, PROBABILITY))}"
        )
    return reward


def find_preference_model(config: RewardConfig, stream: PromptStream | None) -> Path | None:
    """Directory of the reward model or judge; stream: None where it could not be opened."""
    if (preference := config.preference) is None:
        return None
    directory = find_model(builtin_reward_model(preference.model), "reward.preference.model")
    check = check_judge if preference.kind == "judge" else check_reward_model
    sees = check(directory).shows_media
    if sees or stream is None or not stream.shows_media:
        return directory
    # Only now: going through a data set of text alone would cost time.
    if any(prompt.media for prompt in stream.checked()):
        raise ValueError(
            f"the preference model {directory} reads text only, and these prompts show images or "
            "videos; name a vision-language model as reward.preference.model (a Qwen2.5-VL or "
            "Qwen3-VL with a score head, for built-in pictures of digits builtin:tiny_vision, or "
            "as a judge any policy that sees), or set reward.preference=null"
        )
    return directory


def resolve_reference(config: Config, model: str) -> Path:
    """Directory of a second model that the run's engines can hold; raises ValueError if none."""
    directory = resolve_model(builtin_policy(model), untie=config.resources.gpus == 0)
    refuse_longer_than_model(directory, config.rollout.max_model_length)
    return directory


def media_token_counter(config: Config, model: Path, chat: ChatTemplate) -> Callable[[Prompt], int]:
    """Return what counts the tokens that the media of a prompt take, besides their markers."""
    inputs = open_visual_inputs(model, config.data)
    left = iter(range(CHECKED_MEDIA_PROMPTS))

    def count(prompt: Prompt) -> int:
        # It reads media and lays them out as the learner does, which takes time, so only the first
        # prompts with media are looked at: a later one that is too long is dropped when it is
        # asked.
        if not prompt.media or inputs is None or next(left, None) is None:
            return 0
        token_ids = chat.prompt_token_ids(prompt, thinking=False)
        try:
            return len(inputs.expanded(token_ids, prompt.media)) - len(token_ids)
        except MediaError:
            # The header of the file was fine and its content is not. Its group is dropped when it
            # is asked, counted and replaced, as any prompt that turns out to be unusable.
            return 0

    return count


def count_rows(stream: PromptStream, reward: RewardConfig) -> Counter[Rows]:
    """Count the prompts by accuracy reward; raises ValueError if no reference can be checked."""
    known = {"auto", *ROUTES, *([PROBABILITY] if reward.probability else [])}
    rows: Counter[Rows] = Counter()
    unknown: list[Prompt] = []
    for prompt in stream.checked():
        if prompt.task in known:
            route = accuracy_route(prompt, reward.probability is not None)
            # An id begins with the name of its source (rollout/prompts/).
            rows[Rows(prompt.id.partition("/")[0], route, prompt.mode)] += 1
        else:
            unknown.append(prompt)
    if unknown:
        raise ValueError(
            f"{len(unknown)} prompts name a task that no reward takes, such as "
            f"{unknown[0].task!r} of {unknown[0].id}; data.columns.task takes auto, "
            f"{', '.join(ROUTES)}, and {PROBABILITY} where reward.probability is set"
        )
    failures = [row.route for row in rows if isinstance(row.route, Failure)]
    if reward.weights.accuracy != 0 and len(failures) == len(rows):
        commonest = max(rows, key=rows.__getitem__).route
        raise ValueError(
            f"no reference answer can be checked, so nothing could be rewarded: {commonest}; check "
            "data.columns.reference and data.columns.task, or set reward.probability={} for "
            "references in natural language"
        )
    return rows


@asynccontextmanager
async def open_training(
    inputs: RunInputs, phase: Callable[[str], None], supervisor: Supervisor | None = None
) -> AsyncIterator[TrainingServices]:
    """Start Ray, engines, learner and reward service for the block, and tell `phase` of each."""
    config = inputs.config
    supervisor = supervisor or Supervisor(config.recovery, phase)
    phase("starting Ray")
    with closing(open_cluster(config)) as reserved:
        cluster = await _with_checked_nodes(inputs, reserved, inputs.model)
        async with _closed_together(cluster.logs) as closers:
            engines = counted(config.rollout.workers, "vLLM engine")
            phase(f"starting {engines}, {counted(config.policy.ranks, 'rank')}")
            learner = RayLearner(config, inputs.model.absolute(), cluster, supervisor)
            closers.append(learner.close)
            services = await _start_sampling(
                inputs, cluster, closers, supervisor, inputs.model, learner
            )
            engine = services.engine
            engine.admit = at_next_publish
            phase("connecting learner and engines")
            # The canary is a response of the mode with the largest budget, since whatever is wrong
            # with the weights shows in more tokens.
            mode = max(config.modes, key=lambda name: config.modes[name].max_tokens)
            request = train_request(config, inputs.encode, "canary", inputs.heldout[0], mode)
            # Scoring it samples one token more, which must fit too.
            budget = max(1, min(request.max_tokens - 1, CANARY_TOKENS))
            request = dataclasses.replace(request, n=1, max_tokens=budget)
            (trajectory,) = (await engine.generate(request)).trajectories
            engine.canary = Canary(request, trajectory)
            learner.connect_engines(engine, engine.canary)
            yield TrainingServices(
                engine, services.scorer, services.reward_actors, learner, supervisor
            )


@asynccontextmanager
async def open_engines(
    inputs: RunInputs,
    note: Callable[[str], None],
    model: Path,
    scorer_state: Mapping[str, Any] | None = None,
    cluster: Cluster | None = None,
    scores_responses: bool = False,
) -> AsyncIterator[SamplingServices]:
    """Start the run's engines with the weights in `model`, and its reward service, for the block.

    scorer_state: of the checkpoint that the weights are of. cluster: one that outlives the block;
    by default it opens its own. scores_responses: whether the engines are asked how probable
    responses are, also without a reward that asks them.
    """
    config = inputs.config
    supervisor = Supervisor(config.recovery, note)
    if cluster is None:
        note("starting Ray")
    with closing(open_cluster(config)) if cluster is None else nullcontext(cluster) as reserved:
        opened = reserved
        if cluster is None:
            opened = await _with_checked_nodes(inputs, reserved, model)
        async with _closed_together(opened.logs) as closers:
            note(f"starting {counted(config.rollout.workers, 'vLLM engine')}")
            services = await _start_sampling(
                inputs, opened, closers, supervisor, model, scores_responses=scores_responses
            )
            if scorer_state is not None:
                services.scorer.load(scorer_state)
            yield services


def node_needs(config: Config, model: NodeModel, preference: Path | None) -> NodeNeeds:
    """What processes of the run find on their node. model: the policy's."""
    models = [model]
    if preference is not None:
        models.append(NodeModel("reward.preference.model", preference.absolute()))
    paths = {f"reward.plugins.{n}.file": Path(p.file) for n, p in config.reward.plugins.items()}
    for name, source in config.data.sources.items():
        # Rows of text are read by the driver alone; pictures where they are needed.
        at = f"data.mix.{name}" if name else "data"
        if source.shows_media and source.media_dir is not None:
            paths[f"{at}.media_dir"] = Path(source.media_dir).absolute()
        elif source.shows_media and isinstance(source.path, str) and Path(source.path).exists():
            paths[f"{at}.path"] = Path(source.path).absolute()
    weights = (count_parameters(str(model.here)) or 0) * BYTES[config.policy.dtype]
    run = Path(config.run).absolute()
    return NodeNeeds(stack_versions(), models, paths, run if run.is_dir() else None, weights)


def find_policy(config: Config) -> Path:
    """Directory of the policy on the node that this is called on."""
    return resolve_model(builtin_policy(config.policy.model), untie=config.resources.gpus == 0)


async def _with_checked_nodes(inputs: RunInputs, cluster: Cluster, model: Path) -> Cluster:
    """The same, knowing where the model is on each node; raises ValueError for what they lack.

    model: of the engines, and of the learner if there is one.
    """
    config = inputs.config
    # A Ray of its own has this node alone, and the cluster of a sweep is not looked at by each arm.
    if config.resources.ray_address is None or not cluster.is_own:
        return cluster
    find = partial(find_policy, config) if model == inputs.model else None
    policy = NodeModel(f"policy.model={config.policy.model}", model.absolute(), find)
    gpus: Counter[str] = Counter()
    for bundle, node in bundle_nodes(cluster.group).items():
        gpus[node] += cluster.placement.bundles[bundle].gpus
    needs = node_needs(config, policy, inputs.preference_model)
    models = await asyncio.to_thread(check_nodes, needs, gpus)
    return dataclasses.replace(cluster, models=models)


@asynccontextmanager
async def _closed_together(logs: Path | None) -> AsyncIterator[list[Callable[[], Awaitable[None]]]]:
    """Yield a list of what to close; at the end all of it is closed at once, whatever failed.

    logs: where the output of what is closed is, for the message of one that failed.
    """
    closers: list[Callable[[], Awaitable[None]]] = []
    try:
        yield closers
    except WorkerFailed as error:
        # An engine names its own file; a process that was killed could say nothing.
        if logs is None or str(logs) in str(error):
            raise
        raise WorkerFailed(f"what the processes printed is in {logs}\n{error}") from error
    finally:
        # An actor that is dead cannot be closed; its error must not keep the others running, nor
        # hide the error that ended the block.
        await asyncio.gather(*(close() for close in closers), return_exceptions=True)


async def _start_sampling(
    inputs: RunInputs,
    cluster: Cluster,
    closers: list[Callable[[], Awaitable[None]]],
    supervisor: Supervisor,
    model: Path,
    learner: RayLearner | None = None,
    scores_responses: bool = False,
) -> SamplingServices:
    """Start the engines, together with the learner if there is one, and the reward service.

    closers: gets what will end their processes. model: directory of the engines' weights.
    """
    config, probability, preferred = inputs.config, None, None
    shares = divide_workers(config.reward.workers)
    text_places = ActorPlaces(0, strategies=("DEFAULT",) * len(shares), logs=cluster.logs)
    if bundles := cluster.placement.text_bundles:
        strategies = tuple(PlacementGroupSchedulingStrategy(cluster.group, b) for b in bundles)
        text_places = ActorPlaces(shares[0], strategies=strategies, logs=cluster.logs)
    tags = config.policy.think_tags
    text = TextRewardClient.start(config.reward, config.modes, tags, text_places, supervisor)
    closers.append(text.close)
    settings = WorkerSettings(
        # Absolute: an actor of a joined Ray starts in another working directory.
        model=str(model.absolute()),
        dtype=config.policy.dtype,
        max_model_length=config.rollout.max_model_length,
        tensor_parallel=config.rollout.tensor_parallel,
        transport=config.transport,
        thinking={
            name: inputs.chat.choice_tokens(mode.chat_template_kwargs)
            if mode.thinking == "auto"
            else mode.thinking
            for name, mode in config.modes.items()
        },
        tags=tags,
        seed=config.seed,
        keep_kv_cache=config.rollout.keep_kv_cache,
        sleeps=learner is not None and config.engines_sleep,
        scores_references=scores_responses or config.reward.probability is not None,
        # Without a learner the engines hold merged weights.
        adapter=config.policy.lora if learner is not None else None,
        model_on_node={
            node: str(there)
            for (node, here), there in cluster.models.items()
            if here == model.absolute() != there
        },
        engine=config.rollout.engine_arguments,
        data=config.data,
    )
    devices = None
    if learner is not None and config.resources.colocate:
        devices = await learner.devices_by_engine()
    bundles = cluster.placement.engine_bundles
    engine = EnginePool.of_run(
        config, settings, cluster.group, bundles, devices, cluster.logs, supervisor
    )
    closers.append(engine.close)
    if learner is None:
        await engine.start()
    elif config.resources.colocate:
        # While vLLM starts it measures free memory, and takes every change of it for its own: a
        # rank that loads on the same GPU meanwhile would spoil the measurement.
        await learner.start()
        await engine.start()
    else:
        await asyncio.gather(engine.start(), learner.start())
    preference, judges = await _start_preference(inputs, cluster, closers, supervisor)
    if config.reward.probability is not None:
        # Without a learner the engines score instead; both give the same numbers.
        by_learner = config.reward.probability.scorer == "learner"
        scorer = learner if by_learner and learner is not None else engine
        # Without reasoning a prompt is put as in a mode that has none, if there is one.
        direct = (m.chat_template_kwargs for m in config.modes.values() if not m.thinking)
        splice = Splice(inputs.chat, config.rollout.max_model_length, next(direct, {}))
        probability = ProbabilityReward(config.reward.probability, scorer, splice, tags)
    if preference is not None and config.reward.preference is not None:
        preferred = PreferredAnswers(preference, tags, config.reward.preference.reads)
    service = RewardService(config.reward, config.modes, text, probability, preferred)
    return SamplingServices(engine, service, (*text.actors, *judges))


async def _start_preference(
    inputs: RunInputs,
    cluster: Cluster,
    closers: list[Callable[[], Awaitable[None]]],
    supervisor: Supervisor,
) -> tuple[PreferenceModel | None, list[Any]]:
    """The preference model, if there is one, and its actors."""
    config, path = inputs.config.reward.preference, inputs.preference_model
    data = inputs.config.data
    if config is None or path is None:
        return None, []
    bundles = cluster.placement.preference_bundles
    strategies = (PlacementGroupSchedulingStrategy(cluster.group, bundle) for bundle in bundles)
    places = ActorPlaces(config.cpus, config.gpus, tuple(strategies), cluster.logs)
    if config.kind == "judge":
        engine = EnginePool.of_judge(config, path, places, data, supervisor)
        closers.append(engine.close)
        await engine.start()
        return Judge(JudgePrompt(path), engine), engine.actors
    open_inputs = partial(open_visual_inputs, data=data)
    model = await RewardModelClient.start(
        path, places, config.dtype, config.deadline_s, open_inputs, supervisor
    )
    closers.append(model.close)
    return model, model.actors
