"""The built-in tiny policy: a Qwen3 of 87 thousand parameters, made once on this machine.

It stands in for a pretrained model where none can be downloaded, so that a whole run (Ray, vLLM,
DeepSpeed, rewards) works on a laptop CPU in minutes and has something to learn: to add.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from policy.builtin.tokenizer import CHARACTERS, CHAT_TEMPLATE, make_tokenizer, token_settings
from policy.builtin.warmup import (
    ImitationRecipe,
    Question,
    Task,
    imitate,
    reproducible,
    save_warmed,
    shown_warmup,
)
from policy.models.cache import default_cache_dir, digest, made_once
from rl.data.tasks.chain_sum import LENGTHS, Slips, worked_example
from rl.data.tasks.chain_sum import question as sum_question

SIZES = yaml.safe_load(Path(__file__).with_name("models.yaml").read_text("utf-8"))["tiny"]

# Of the seeds 0 to 4, one whose reasoning forms early and almost without error; GRPO then has the
# most to gain. On seed 0 one greedy long answer in ten is still wrong after 1150 steps.
DEFAULT_SEED = 2
# By thinking: longer than any worked example, so that only what is wrong anyway is cut.
MAX_RESPONSE_TOKENS = {False: 6, True: 70}


@dataclass(frozen=True)
class WarmupRecipe(ImitationRecipe):
    """Everything that decides the warmed weights besides the seed and the model's sizes."""

    min_steps: int = 800
    max_steps: int = 1200
    learning_rate: float = 6e-3
    short_share: float = 0.2
    enough_short: float = 0.3
    enough_long: float = 0.45
    addition_slips: float = 0.15
    answer_slips: float = 0.2
    """How often worked examples err (rl/data/tasks/chain_sum.py)."""


# Fewer slips, because all of its examples have as many lines as the longest of the other's, and
# fewer still in answers at once, so that easy questions are easy at once from the start.
CHOOSING_WARMUP = WarmupRecipe(
    min_steps=1500,
    max_steps=2000,
    short_share=0.35,
    enough_short=0.5,
    addition_slips=0.05,
    answer_slips=0.03,
)
CHOOSING_LENGTHS = (6,)
CHOOSING_NONZERO = (1, 1, 2, 2, 4, 6, 6, 6)
"""What the policy that chooses is taught: sums as easy as a copy, and more of the hardest than are
asked later, whose reasoning takes the most teaching (chain_sum.py)."""


def ensure_tiny_policy(
    cache_dir: Path | None = None, seed: int | None = None, recipe: WarmupRecipe | None = None
) -> Path:
    """Return a Hugging Face model directory with the tiny policy, making it on first use.

    The first use takes about a minute on one core. `warmup.json` in it says how it ended.
    """
    return _made(cache_dir, seed, recipe or WarmupRecipe(), chooses=False)


def ensure_tiny_choosing_policy(
    cache_dir: Path | None = None, seed: int | None = None, recipe: WarmupRecipe | None = None
) -> Path:
    """The same of the policy that may choose: of sums in which addends are 0, and of both choices,
    made in proportion and without regard to the question."""
    return _made(cache_dir, seed, recipe or CHOOSING_WARMUP, chooses=True)


def _made(cache_dir: Path | None, seed: int | None, recipe: WarmupRecipe, *, chooses: bool) -> Path:
    seed = DEFAULT_SEED if seed is None else seed

    def write(directory: Path) -> None:
        tokenizer = make_tokenizer(SIZES["max_position_embeddings"], has_blank_line=chooses)
        slips = Slips(np.random.default_rng(seed), recipe.addition_slips, recipe.answer_slips)
        task = SumTask(tokenizer, seed=seed, slips=slips)
        if chooses:
            own = {"lengths": CHOOSING_LENGTHS, "nonzero": CHOOSING_NONZERO}
            task = replace(task, **own, teaches_choice=True)
        with reproducible(seed), shown_warmup(recipe.min_steps) as show:
            config = Qwen3Config(**SIZES, **token_settings(tokenizer), dtype="float32")
            model = Qwen3ForCausalLM(config)
            report = imitate(model, task, task, seed, recipe, show)
        save_warmed(directory, model, tokenizer, report)

    deciding = [asdict(recipe), SIZES, CHARACTERS, CHAT_TEMPLATE, seed]
    if chooses:
        deciding += [CHOOSING_LENGTHS, CHOOSING_NONZERO]
    name = f"{'tiny_auto' if chooses else 'tiny'}-{digest(deciding)}"
    return made_once((cache_dir or default_cache_dir()) / name, write)


@dataclass(frozen=True)
class SumTask(Task):
    """Sums that are written out."""

    lengths: tuple[int, ...] = LENGTHS
    nonzero: tuple[int, ...] = ()
    teaches_choice: bool = False
    """Whether examples also teach how a mode's prompt ends, as a policy writes it that chooses."""

    def questions(self, first: int, count: int, *, heldout: bool) -> list[Question]:
        numbers, seed = range(first, first + count), 0 if heldout else self.seed
        sums = [sum_question(seed, n, heldout, self.lengths, self.nonzero) for n in numbers]
        return [Question(each.text, each.answer, each.numbers) for each in sums]

    def num_taught(self, thinking: bool) -> int:
        # A line end, or a blank line with a closed tag and another blank line (tokenizer.py).
        return (1 if thinking else 3) if self.teaches_choice else 0

    def worked_example(self, question: Question, thinking: bool) -> str:
        return worked_example(question.addends, thinking, self.slips)

    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        texts = self.tokenizer.apply_chat_template(
            [[{"role": "user", "content": question.text}] for question in questions],
            add_generation_prompt=True,
            enable_thinking=thinking,
            tokenize=False,
        )
        return self.tokenizer(texts)["input_ids"]

    def sampled(
        self, model: PreTrainedModel, questions: Sequence[Question], thinking: bool
    ) -> list[str]:
        prompts = torch.tensor(self.prompts(questions, thinking))  # [B, T]
        responses = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=MAX_RESPONSE_TOKENS[thinking],
            # From the whole distribution, as the engines sample; transformers' default cuts it.
            do_sample=True,
            top_k=0,
            pad_token_id=self.tokenizer.pad_token_id,
        )[:, prompts.shape[1] :]
        return self.tokenizer.batch_decode(responses, skip_special_tokens=True)
