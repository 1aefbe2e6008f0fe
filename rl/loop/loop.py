"""The loop: one, for every staleness.

    step b:   prompts and modes of b -> engine -> reward service -> groups of b   (producers)
    trainer:  take the groups of b -> advantages -> learner.update -> publish -> step b + 1

Groups belong to the step they were asked for, so the ratio of modes that was drawn is the ratio
that is trained, whatever finishes first, and a batch's prompts are a function of (seed, step).

    producers   wait for a free slot: the groups of step b are asked for as soon as version
                b - max_staleness is published and proven
    trainer     waits for the groups of its step, all of them; unblocks the producers of step
                b + max_staleness + 1 by publishing version b + 1

So there are at most prompts_per_step * (max_staleness + 1) groups between request and publish,
and no sample is more than max_staleness versions old when it is trained on.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from rl.config.run import Config
from rl.data.fingerprint import stable_hash
from rl.loop.accounting import Accounting, FinishedPlace, FinishedStore
from rl.loop.advantages import (
    ChoicePrices,
    choice_advantages,
    group_advantages,
    utilities,
    within_kinds,
)
from rl.loop.group_filter import DropReason, GroupFilter
from rl.loop.interfaces import Engine, GenerationFailed, Learner, LearnerLost, Scorer
from rl.loop.modes import draw_pairs, draw_step, shares_at
from rl.loop.publish import CanaryCheck, JoinedEngine, admit, publish
from rl.loop.race import first_of
from rl.loop.stages import (
    BatchUpdate,
    ChoiceCredit,
    Failure,
    Prompt,
    RolloutRequest,
    ScoredGroup,
    TrainBatch,
    TrainSample,
)
from rl.loop.step_guard import wrong_credit

T = TypeVar("T")
Advantages = tuple[tuple[float | None, ...], ...]
"""By group and trajectory; None where there is none."""
MAX_ATTEMPTS = 20
GROUPS_A_TURN = 32
"""Groups that may go on in one turn of the event loop. Each has a prompt to be rendered and
tokenised, and later responses to be sent to the rewards; those of a large step together would keep
everything else waiting for seconds."""
SHOWN_FAILURES = 3


class Prompts(Protocol):
    """The prompt stream, addressed by place so that it resumes exactly."""

    def prompts(self, step: int) -> list[Prompt]: ...

    def replacement(self, step: int, place: int, attempt: int, mode: str) -> Prompt: ...


@dataclass(frozen=True)
class Parts:
    """What the loop drives."""

    prompts: Prompts
    encode: Callable[[Prompt, str], tuple[int, ...]]
    """Prompt and mode to prompt token ids."""
    engine: Engine
    scorer: Scorer
    learner: Learner


@dataclass(frozen=True)
class StepResult:
    """One finished step: what was trained on, and what it cost."""

    step: int
    """Steps done, 1-based: the policy version after this step."""
    groups: tuple[ScoredGroup, ...]
    advantages: tuple[tuple[float | None, ...], ...]
    choices: tuple[tuple[float | None, ...], ...]
    """Advantages of choices, by group and trajectory; None in modes that leave no choice."""
    prices: Mapping[str, float]
    """Of 1,000 tokens, in each mode that chooses, as these choices were credited."""
    mismatches: tuple[tuple[float | None, ...], ...]
    """`BatchUpdate.mismatches` by group and trajectory; None where it was left out."""
    dropped: Counter[tuple[str, str]]
    """Groups of this step that were replaced, by mode and reason."""
    learner_metrics: dict[str, float]
    sync_metrics: dict[str, float]
    seconds: dict[str, float]
    """`step`, from the publish before to this one, is the sum of `record` (what the caller did with
    the step before: writing, evaluating, saving), `wait_for_groups`, `update` and `publish`. Of it,
    `scoring` while nothing was sampled, and `engines_idle` while nothing was scored either."""
    skipped: str | None = None
    """Why the learner did not learn from the step, or not from all of it (step_guard.py)."""


class _Activity:
    """What producers are at, in wall-clock seconds: `sampling`, else `scoring`, else `idle`."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._since = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def at(self, kind: str) -> Iterator[None]:
        """One producer more is sampling or scoring."""
        self._account()
        self._counts[kind] += 1
        try:
            yield
        finally:
            self._account()
            self._counts[kind] -= 1

    def take_seconds(self) -> Mapping[str, float]:
        """Seconds of each state since the last call."""
        self._account()
        taken, self._seconds = self._seconds, defaultdict(float)
        return taken

    def _account(self) -> None:
        now = time.monotonic()
        state = next((kind for kind in ("sampling", "scoring") if self._counts[kind]), "idle")
        self._seconds[state] += now - self._since
        self._since = now


class TrainingLoop:
    def __init__(
        self,
        config: Config,
        parts: Parts,
        version: int = 0,
        canary: CanaryCheck | None = None,
        finished: FinishedStore | None = None,
    ) -> None:
        """version: steps already done, whose weights the engines hold and have proven.

        canary: the check that they were proven by, which knows how far they differ by rounding.
        finished: keeps groups that wait for their update, and has those of an earlier process.
        """
        self._config = config
        self._parts = parts
        self._version = version
        self.canary = canary or CanaryCheck.of(config)
        """Judges every publish; the first one teaches it how far engine and learner may differ."""
        self.group_filter = GroupFilter(config)
        self.choice_prices = ChoicePrices(config)
        self.accounting = Accounting()
        """The state of all three belongs into a checkpoint."""
        self._finished = finished
        self._asked_for: dict[int, list[asyncio.Task[FinishedPlace]]] = {}
        self._next_to_ask = version
        self._stop = asyncio.Event()
        self._failures: Counter[Failure] = Counter()
        self._activity = _Activity()
        self._turns = _Turns(GROUPS_A_TURN)
        self._published_at: float | None = None
        self._learner_holds_version = asyncio.Lock()
        """Held by whoever changes that, or relies on it."""
        self._is_over = False

    @property
    def version(self) -> int:
        """Steps done, which the engines have the weights of."""
        return self._version

    async def run(
        self,
        on_step: Callable[[StepResult], Awaitable[bool]],
        stop: asyncio.Event | None = None,
    ) -> None:
        """Step until `config.steps`, or until on_step answers False; it sees every step's result.

        stop: also ends it, between steps or while it waits for groups. Requests still in flight are
        cancelled at the end; a resumed run asks for them again.
        """
        self._stop = stop or self._stop
        try:
            while self._version < self._config.steps:
                result = await self.step()
                if result is None or not await on_step(result):
                    return
        except LearnerLost as lost:
            lost.discarded = sum(map(len, self._asked_for.values()))
            raise
        finally:
            self._is_over = True
            # What is being sampled is thrown away: a resumed run draws the same prompts and modes
            # again, so nothing is lost but time, and nothing is trained on twice. What is finished
            # waits in `finished`.
            tasks = [task for tasks in self._asked_for.values() for task in tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def admit(self, engine: JoinedEngine) -> None:
        """Give the engines that are joining the weights that the others have."""
        # After an update the learner holds weights that no engine has: those go to all of them in
        # the publish of the step, which takes in who is joining too.
        async with self._learner_holds_version:
            # A learner that is lost holds nothing, and a new loop begins with a publish.
            if self._is_over:
                return
            await admit(self._parts.learner, engine, self._version, self.canary)

    async def step(self) -> StepResult | None:
        """Take the oldest step's groups, update the learner on them, publish its weights.

        None where a stop was asked for before the groups were there; then nothing has changed.
        """
        called = time.monotonic()
        # A step begins where the one before it ended, so that the steps of a run add up to its
        # time. The first one begins here, and what engines did before it is not counted.
        if (started := self._published_at) is None:
            started = called
            self._activity.take_seconds()
        self._ask_for_groups()
        # All groups of this step and in the order they were asked for: taking whichever finish
        # first would train the quick mode early and the slow one late.
        groups_of_step = asyncio.gather(*self._asked_for[self._version])
        if (places := await unless_stopped(groups_of_step, self._stop)) is None:
            return None
        taken = time.monotonic()
        groups = [finished.scored for finished in places]
        # Only between steps: within one, who finishes first would decide who is dropped.
        spreads = [spread for finished in places for spread in finished.spreads]
        self.group_filter.end_step(self._version + 1, spreads)
        prices = self.choice_prices.now
        batch, advantages, choices = self._credit(groups, prices)
        self.choice_prices.end_step(groups)
        if self._config.rollout.deterministic:
            # Which version samples a token is then a function of its step alone. Before the update,
            # after which no lost engine could be given the version that these groups wait for.
            await asyncio.gather(*(task for tasks in self._asked_for.values() for task in tasks))
        learner, engine = self._parts.learner, self._parts.engine
        async with self._learner_holds_version:
            # Before the learner is asked, so that no rank meets them.
            if wrong := wrong_credit(groups, advantages):
                update = BatchUpdate({}, (None,) * len(batch.samples), wrong)
            else:
                # Nothing is in flight then: all groups of the step are here, and no later ones.
                if self._config.engines_sleep:
                    await engine.sleep()
                update = await learner.update(batch)
            updated = time.monotonic()
            sync_metrics = await publish(learner, engine, self._version + 1, self.canary)
            # Only after the proof: no engine whose weights nobody has checked may fill the slots.
            del self._asked_for[self._version]
            trained = [scored.group.request.group_id for scored in groups]
            is_skipped = update.skipped is not None
            dropped = self.accounting.settle(self._version, trained, is_skipped=is_skipped)
            if self._finished is not None:
                self._finished.release(self._version)
            self._version += 1
        self._published_at = finished = time.monotonic()
        activity = self._activity.take_seconds()
        # The batch holds the trajectories with an advantage, in the order of the groups.
        of_samples = iter(update.mismatches)
        mismatches = tuple(
            tuple(None if advantage is None else next(of_samples) for advantage in of_group)
            for of_group in advantages
        )
        # Now and not in the next step: engines would idle while the caller evaluates and saves.
        self._ask_for_groups()
        return StepResult(
            step=self._version,
            groups=tuple(groups),
            advantages=advantages,
            choices=choices,
            prices=prices,
            mismatches=mismatches,
            dropped=dropped,
            learner_metrics=dict(update.metrics),
            sync_metrics=sync_metrics,
            seconds={
                "step": finished - started,
                "record": called - started,
                "wait_for_groups": taken - called,
                "update": updated - taken,
                "publish": finished - updated,
                "scoring": activity["scoring"],
                "engines_idle": activity["idle"],
            },
            skipped=update.skipped,
        )

    # Producers

    def _ask_for_groups(self) -> None:
        """Ask for the groups of every step that has slots."""
        # A step's slots are free once its oldest allowed version is published, which bounds both
        # the groups in memory and the staleness of every sample.
        last = min(self._version + self._config.rollout.max_staleness, self._config.steps - 1)
        while self._next_to_ask <= last:
            step = self._next_to_ask
            prompts = self._parts.prompts.prompts(step)
            modes = draw_step(
                self._config.seed,
                step,
                shares_at(self._config, step + 1),
                [prompt.mode for prompt in prompts],
                self._config.rollout.draw,
            )
            pairs = draw_pairs(self._config, step, modes)
            # Long prompts go out first: they are the tail that everyone waits for.
            budgets = [self._config.modes[mode].max_tokens for mode in modes]
            order = sorted(range(len(prompts)), key=lambda place: -budgets[place])
            tasks: dict[int, asyncio.Task[FinishedPlace]] = {}
            for place in order:
                tasks[place] = asyncio.create_task(
                    self._produce(step, place, prompts[place], modes[place], pairs[place])
                )
            self._asked_for[step] = [tasks[place] for place in range(len(prompts))]
            self._next_to_ask += 1

    async def _produce(
        self, step: int, place: int, prompt: Prompt, mode: str, is_pair: bool
    ) -> FinishedPlace:
        """One group, from the first prompt of this place whose group is not dropped."""

        def request(attempt: int) -> RolloutRequest:
            # The replacement has the same mode, so that groups which fail more often, usually the
            # long ones, do not shift the ratio that was drawn.
            replaced = self._parts.prompts.replacement
            asked = replaced(step, place, attempt, mode) if attempt else prompt
            group_id = f"{step}/{place}/{attempt}"
            return train_request(self._config, self._parts.encode, group_id, asked, mode, is_pair)

        if self._finished and (kept := self._finished.take(step, place, request)):
            self.accounting.restore(kept)
            self._parts.scorer.recall(kept.learnt)
            return kept
        dropped: list[str] = []
        spreads: list[float] = []
        learnt: dict[str, float] = {}
        for attempt in range(MAX_ATTEMPTS):
            await self._turns.take()
            asked = request(attempt)
            self.accounting.draw(step, asked.group_id)
            try:
                with self._activity.at("sampling"):
                    group = await self._parts.engine.generate(asked)
            except GenerationFailed as failed:
                self._failures[failed.failure] += 1
                reason = failed.failure.reason
            else:
                await self._turns.take()
                with self._activity.at("scoring"):
                    scores = await self._parts.scorer.score(group)
                learnt |= self._parts.scorer.learnt(asked)
                self._failures.update(score.failure for score in scores if score.failure)
                reason = self.group_filter.reason(step + 1, mode, scores)
                if (spread := self.group_filter.spread(mode, scores)) is not None:
                    spreads.append(spread)
                # A group of little signal may stand where no other was found, one without scores
                # never.
                is_last = attempt == MAX_ATTEMPTS - 1
                if reason is None or (is_last and reason is not DropReason.UNSCORED):
                    scored = ScoredGroup(group, scores)
                    finished = FinishedPlace(
                        step, place, scored, tuple(dropped), tuple(spreads), learnt
                    )
                    if self._finished is not None:
                        await self._finished.add(finished)
                    return finished
            dropped.append(str(reason))
            self.accounting.drop(step, asked.group_id, mode, str(reason))
        failures = {str(f): count for f, count in self._failures.most_common(SHOWN_FAILURES)}
        raise RuntimeError(
            f"{MAX_ATTEMPTS} groups in a row were dropped for place {place} of step {step + 1} in "
            f"mode {mode}; reasons: {dict(Counter(dropped))}; failures so far: {failures}"
        )

    # Trainer

    def _credit(
        self, groups: Sequence[ScoredGroup], prices: Mapping[str, float]
    ) -> tuple[TrainBatch, Advantages, Advantages]:
        """Return the batch and every advantage, of responses and of choices.

        Raises RuntimeError for an unproven version.
        """
        max_staleness = self._config.rollout.max_staleness
        for scored in groups:
            for trajectory in scored.group.trajectories:
                first, last = trajectory.versions
                if last > self._version or self._version - first > max_staleness:
                    raise RuntimeError(
                        f"group {scored.group.request.group_id} was sampled by versions {first} to "
                        f"{last}, outside what may be trained at version {self._version} with "
                        f"rollout.max_staleness {max_staleness}"
                    )
        compare = partial(
            group_advantages, normalize_by_std=self._config.algorithm.normalize_by_std
        )
        advantages = tuple(
            tuple(within_kinds(s.group.kinds, [score.reward for score in s.scores], compare))
            for s in groups
        )
        samples: list[TrainSample] = []
        choices: list[tuple[float | None, ...]] = []
        for scored, of_group in zip(groups, advantages, strict=True):
            request, mode = scored.group.request, self._config.modes[scored.group.request.mode]
            of_choices: tuple[float | None, ...] = (None,) * len(of_group)
            if mode.thinking == "auto":
                worth = utilities(scored, prices[request.mode])
                of_choices = choice_advantages(scored.group.choices, worth)
            choices.append(of_choices)
            for place, (trajectory, advantage, chosen) in enumerate(
                zip(scored.group.trajectories, of_group, of_choices, strict=True)
            ):
                if advantage is None:
                    continue
                credit = None
                if chosen is not None and trajectory.choice is not None:
                    credit = ChoiceCredit(chosen, mode.choice_weight, trajectory.choice)
                sample = TrainSample(
                    trajectory=trajectory,
                    advantage=advantage,
                    temperature=request.temperature,
                    id=f"{request.group_id}/{place}",
                    media=request.prompt.media,
                    choice=credit,
                )
                samples.append(sample)
        return TrainBatch(self._version + 1, tuple(samples)), advantages, tuple(choices)


class _Turns:
    """Lets few callers go on in each turn of the event loop, who came first goes first."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    async def take(self) -> None:
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)


async def unless_stopped(work: Awaitable[T], stop: asyncio.Event) -> T | None:
    """What the work returns; None, and the work is cancelled, if `stop` is set before it ends."""
    async with first_of(work, stop.wait()) as (working, _):
        return await working if working.done() else None


def train_request(
    config: Config,
    encode: Callable[[Prompt, str], tuple[int, ...]],
    group_id: str,
    prompt: Prompt,
    mode: str,
    is_pair: bool = False,
) -> RolloutRequest:
    """The request for one group of training; its seed depends on the run's seed and the group."""
    settings = config.modes[mode]
    return RolloutRequest(
        group_id=group_id,
        prompt=prompt,
        mode=mode,
        prompt_token_ids=encode(prompt, mode),
        n=config.rollout.group_size,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        # Tied to the group and not to a counter: a retry or a resumed run samples the same
        # responses.
        seed=sampling_seed(config.seed, group_id) if config.rollout.seed_requests else None,
        is_pair=is_pair,
    )


def sampling_seed(seed: int, group_id: str) -> int:
    """A 31-bit seed that is the same for the same run seed and group in any process."""
    return stable_hash(f"{seed}/{group_id}", 4) >> 1
