"""Prompts without end: built-in sums and pictures, and reasoning-gym's procedural tasks."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from rl.config.data import PromptsConfig
from rl.data.fingerprint import stable_hash
from rl.data.media.names import rendered
from rl.data.tasks.chain_sum import LENGTHS
from rl.data.tasks.chain_sum import question as chain_sum_question
from rl.data.tasks.pictures import TASKS, ask, read_settings
from rl.loop.stages import PROBABILITY, Prompt
from rollout.prompts.conversation import conversation
from rollout.prompts.row_media import place_media

# The held-out prompts of a procedural task are the same whatever the run's seed, so that runs
# can be compared.
HELDOUT_SEED = 0


class Procedural(ABC):
    """Any number of prompts, none of them pinned."""

    train_count = None
    heldout_count = None
    quarantined = ()
    shows_media = False

    def __init__(self, config: PromptsConfig, seed: int) -> None:
        self._name = str(config.path or "")
        self._task = config.task
        self._system_prompt = config.system_prompt
        self._seed = seed

    def train(self, index: int) -> Prompt:
        return self._prompt("train", self._seed, index)

    def heldout(self, index: int) -> Prompt:
        return self._prompt("heldout", HELDOUT_SEED, index)

    def rows_for(self, mode: str) -> None:
        return None

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        # Prompts are drawn as they are asked for, so there is no list to take them from.
        raise ValueError(f"{len(reasons)} prompts of a task without end cannot be left out")

    @abstractmethod
    def _prompt(self, split: str, seed: int, index: int) -> Prompt: ...


class ChainSumSource(Procedural):
    """The built-in addition task (rl/data/tasks/chain_sum.py).

    `settings` takes `lengths`, `nonzero` and `probability_share`: how many addends there are, how
    many of them are not 0 (without it, all; a number that is listed twice comes twice as often),
    and the share of training prompts whose answer
    is rewarded by its probability instead of by rules, as an answer in words would be. It has no
    effect where that reward is turned off.
    """

    def __init__(self, config: PromptsConfig, seed: int, unrewarded: Collection[str] = ()) -> None:
        super().__init__(config, seed)
        settings = dict(config.settings)
        counts = {"lengths": settings.pop("lengths", list(LENGTHS))}
        counts["nonzero"] = settings.pop("nonzero", [])
        share = settings.pop("probability_share", 0.0)
        if settings:
            raise ValueError(
                "data.settings of chain_sum takes only lengths, nonzero and probability_share, "
                f"got {sorted(settings)}"
            )
        for name, listed in counts.items():
            if not isinstance(listed, list) or not all(isinstance(n, int) for n in listed):
                raise ValueError(
                    f"data.settings.{name} must be a list of whole numbers, got {listed!r}"
                )
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(
                f"data.settings.probability_share must be between 0 and 1, got {share!r}"
            )
        self._counts = tuple(counts["lengths"]), tuple(counts["nonzero"])
        # Rules can score every sum, so where the other reward is off they score all of them.
        self._probability_share = 0.0 if PROBABILITY in unrewarded else share
        # Asked once here, because it refuses numbers that are out of range.
        chain_sum_question(seed, 0, False, *self._counts)

    def _prompt(self, split: str, seed: int, index: int) -> Prompt:
        asked = chain_sum_question(seed, index, split == "heldout", *self._counts)
        # By hash and not from a generator, so that a resumed run draws the same for each prompt.
        drawn = stable_hash(f"probability/{seed}/{index}") / 2**64
        by_chance = split == "train" and drawn < self._probability_share
        task = PROBABILITY if by_chance else self._task
        messages = conversation(asked.text, self._system_prompt)
        difficulty = float(sum(number > 0 for number in asked.numbers))
        prompt_id = f"chain_sum/{split}/{index}"
        return Prompt(prompt_id, messages, asked.answer, task, difficulty=difficulty)


class VisualSource(Procedural):
    """One task of rl/data/tasks/pictures, named by `path`; `settings` are the task's own.

    A prompt names its media; whoever needs the pixels paints them (rl/data/media/store.py).
    """

    shows_media = True

    def __init__(self, config: PromptsConfig, seed: int, name: str = "") -> None:
        """name: of the source in a mixture."""
        super().__init__(config, seed)
        self._source = name
        if config.path is None:
            raise ValueError(f"data.path must name a visual task: {', '.join(TASKS)}")
        self._settings = read_settings(self._name, config.settings)

    def _prompt(self, split: str, seed: int, index: int) -> Prompt:
        is_heldout = split == "heldout"
        asked = ask(self._name, self._settings, seed, index, is_heldout)
        shown = rendered(self._name, asked.media, seed, index, is_heldout, self._source)
        question = conversation(asked.question, self._system_prompt)
        messages, media = place_media(question, shown, has_tags=False)
        # The task knows how its answers compare, unless the run says otherwise.
        task = asked.task if self._task == "auto" else self._task
        return Prompt(f"{self._name}/{split}/{index}", messages, asked.answer, task, media=media)


class ReasoningGymSource(Procedural):
    """A procedural task of the reasoning-gym library; `settings` are the task's own.

    The splits draw from one generator, and a hash of the question decides which of the two may
    ask it, so they cannot overlap even in a task with few questions.
    """

    HELDOUT_ONE_IN = 8
    MAX_TRIES = 1000
    """Draws for one prompt; a task that needs more has no question in the split."""

    def __init__(self, config: PromptsConfig, seed: int) -> None:
        # Imported on use: it loads all of its hundred tasks, which takes seconds.
        from reasoning_gym.factory import DATASETS, create_dataset

        super().__init__(config, seed)
        if self._name not in DATASETS:
            near = difflib.get_close_matches(self._name, DATASETS, n=3) or sorted(DATASETS)[:10]
            raise ValueError(
                f"data.path must name one of reasoning-gym's {len(DATASETS)} tasks, got "
                f"{config.path!r}; such as {', '.join(near)}"
            )
        try:
            self._rows = create_dataset(self._name, seed=0, **config.settings)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"data.settings do not suit reasoning-gym's {self._name}: {error}"
            ) from error

    def _prompt(self, split: str, seed: int, index: int) -> Prompt:
        for attempt in range(self.MAX_TRIES):
            # Cut to 31 bits, because some tasks seed numpy with the index, which takes at most 32.
            row = self._rows[stable_hash(f"{split}/{seed}/{index}/{attempt}") >> 33]
            # By the question itself, because a task with few questions draws the same one at many
            # indices.
            is_heldout = stable_hash(row["question"]) % self.HELDOUT_ONE_IN == 0
            if is_heldout == (split == "heldout"):
                messages = conversation(row["question"], self._system_prompt)
                prompt_id = f"{self._name}/{split}/{index}"
                return Prompt(prompt_id, messages, str(row["answer"]), self._task)
        raise ValueError(
            f"reasoning-gym's {self._name} has no {split} question in {self.MAX_TRIES} draws with "
            f"data.settings {vars(self._rows.config)}; widen the settings or take another task"
        )
