"""The built-in tiny labellers: models that say yes or no to a claim, made once on this machine.

They stand in for a large model that judges claims where none can be downloaded. Each starts from a
tiny policy that already adds, or sees and adds: a Qwen3 for claims about sums, and a Qwen2.5-VL for
claims about the digits of a picture. Every question is asked twice in a batch, once with a right
answer and once with a wrong one. After 900 steps of text, this contrast makes the difference
between a guess and two claims in three that are labelled right. Beside the verdict, the labellers
learn to foresee the right answer within its own question, and to name each digit where it is seen.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from policy.builtin.mistakes import LETTERS, MISTAKES, wrong_answer
from policy.builtin.text_policy import ensure_tiny_policy
from policy.builtin.vision_policy import ensure_tiny_vision_policy
from policy.builtin.vision_warmup import TASK, PictureTask, picture_sample
from policy.builtin.warmup import (
    OnStep,
    reproducible,
    save_warmed,
    shown_warmup,
    train_in_rounds,
)
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.checks import read_config
from policy.models.family import model_family
from rl.data.media.families import vision_family
from rl.data.media.names import RenderedImage
from rl.data.tasks.chain_sum import question as sum_question

YES, NO = "yes", "no"
WORDING = ('Is it correct that the answer to "', '" is ', "? Please answer yes or no.")
"""What stands around question and answer in every claim; a token each."""
PICTURE = "<|image_pad|>"
"""The marker of the one policy with pictures that a labeller starts from."""


@dataclass(frozen=True)
class LabellerRecipe:
    """Everything that decides the weights besides the policy they start from."""

    shares: tuple[float, ...]
    """How often a wrong answer makes each of MISTAKES."""
    min_steps: int
    max_steps: int
    learning_rate: float
    examples_per_step: int
    """Questions, each with a right and a wrong answer."""
    enough: float = 0.97
    """Training ends once this share of held-out claims is labelled right."""
    foresight: float = 0.3
    """Weight of the loss on right answers within their question, beside that on verdicts."""
    naming: float = 1.0
    """Weight of the loss on the digits of the pictures."""
    round_steps: int = 100
    rise_steps: int = 30
    """See policy/builtin/warmup.py."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    seed: int = 1
    """Of questions, mistakes and new tokens."""
    heldout_questions: int = 400
    """Per mistake, for the report."""


# The largest shares are of the mistakes that the policies' own worked examples make: a sum that is
# off by one, and a digit of a picture that is read as another.
TEXT = LabellerRecipe(
    shares=(0.4, 0.2, 0.15, 0.1, 0.15),
    min_steps=2500,
    max_steps=5000,
    learning_rate=3e-3,
    examples_per_step=32,
)
VISION = LabellerRecipe(
    shares=(0.25, 0.15, 0.4, 0.1, 0.1),
    min_steps=1300,
    max_steps=1800,
    learning_rate=3e-3,
    examples_per_step=32,
)


@dataclass(frozen=True)
class LabellerReport:
    """How the training ended; `warmup.json` in the model's directory."""

    seed: int
    steps: int
    seconds: float
    balanced: float
    """Share of held-out claims labelled right: half are right, the others err as in training."""
    accuracy: dict[str, float]
    """The same of right claims alone, and of wrong ones by mistake."""
    is_ready: bool


@dataclass(frozen=True)
class Question:
    """Something that is asked, and what answers to it are made from."""

    text: str
    answer: str
    """Two digits, the sum of the addends."""
    addends: tuple[int, ...]
    picture: RenderedImage | None = None
    """Shows the addends."""


def ensure_tiny_labeller(
    cache_dir: Path | None = None,
    policy: Path | None = None,
    recipe: LabellerRecipe = TEXT,
    seed: int | None = None,
) -> Path:
    """Return the directory of a labeller of sums, making it on first use.

    policy: the tiny policy it starts from; made if not given. seed: in place of the recipe's, and
    of the policy that is made for it. The first use takes two minutes on one core, and another one
    for the policy.
    """
    cache_dir = cache_dir or default_cache_dir()
    policy = policy or ensure_tiny_policy(cache_dir, seed)
    return _ensure("tiny_labeller", cache_dir, policy, recipe, seed)


def ensure_tiny_vision_labeller(
    cache_dir: Path | None = None,
    policy: Path | None = None,
    recipe: LabellerRecipe = VISION,
    seed: int | None = None,
) -> Path:
    """Return the directory of a labeller of pictures of digits, making it on first use.

    policy: the tiny Qwen2.5-VL it starts from; made if not given. seed: in place of the recipe's,
    and of the policy that is made for it. The first use takes two minutes and a half on one core,
    and as much again for the policy.
    """
    cache_dir = cache_dir or default_cache_dir()
    policy = policy or ensure_tiny_vision_policy("tiny_qwen_vl", cache_dir, seed)
    return _ensure("tiny_vision_labeller", cache_dir, policy, recipe, seed)


def claim_question(asked: str, answer: str) -> str:
    """What a labeller is asked about the claim that `answer` is right.

    Example: claim_question("+?", "12") ==
    'Is it correct that the answer to "+?" is 12? Please answer yes or no.'
    """
    lead, between, request = WORDING
    return f"{lead}{asked}{between}{answer}{request}"


@dataclass(frozen=True)
class ClaimTask:
    """Questions of one kind, and claims about their answers as prompts of the labeller."""

    tokenizer: PreTrainedTokenizerFast
    pictures: PictureTask | None
    """None for sums that are written out."""
    seed: int
    """Of the training questions."""

    @classmethod
    def open(cls, policy: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> ClaimTask:
        """policy: what the labeller starts from, which says whether it sees."""
        if vision_family(read_config(policy).model_type) is None:
            return cls(tokenizer, None, seed)
        return cls(tokenizer, PictureTask.open(policy, tokenizer, TASK, seed), seed)

    def training_questions(self, first: int, count: int) -> list[Question]:
        if self.pictures is None:
            return _sums(self.seed, first, count, heldout=False)
        return self._shown(self.pictures, self.pictures.training(first, count))

    def heldout_questions(self, count: int) -> list[Question]:
        if self.pictures is None:
            return _sums(0, 0, count, heldout=True)
        (pictures,) = self.pictures.heldout(count)
        return self._shown(self.pictures, pictures)

    def _shown(self, task: PictureTask, pictures: Sequence[RenderedImage]) -> list[Question]:
        scenes = [task.scene(picture) for picture in pictures]
        return [
            Question(scene.question, scene.answer, scene.digits, picture)
            for scene, picture in zip(scenes, pictures, strict=True)
        ]

    def rows(self, questions: Sequence[Question], answers: Sequence[str]) -> list[list[int]]:
        """Token ids of each claim up to where its verdict is sampled, visual tokens in place."""
        messages = []
        for question, answer in zip(questions, answers, strict=True):
            content: Any = claim_question(question.text, answer)
            if question.picture is not None:
                content = [{"type": "image"}, {"type": "text", "text": content}]
            messages.append([{"role": "user", "content": content}])
        texts = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
        )
        if self.pictures is not None:
            # All pictures have the same size, and a visual token for each digit.
            num_visual = len(questions[0].addends)
            texts = [text.replace(PICTURE, PICTURE * num_visual) for text in texts]
        return self.tokenizer(texts)["input_ids"]

    def visual_arguments(
        self, questions: Sequence[Question], rows: Sequence[Sequence[int]], token_ids: Tensor
    ) -> dict[str, Any]:
        """What the backbone takes besides token_ids [B, T], which are the rows, padded."""
        if self.pictures is None:
            return {}
        samples = [
            picture_sample(question.picture, row, len(row))
            for question, row in zip(questions, rows, strict=True)
            if question.picture is not None
        ]
        visual = self.pictures.inputs(samples, token_ids)
        assert visual is not None
        return visual.arguments()


def _sums(seed: int, first: int, count: int, heldout: bool) -> list[Question]:
    sums = [sum_question(seed, first + index, heldout) for index in range(count)]
    return [Question(each.text, each.answer, each.numbers) for each in sums]


def _ensure(
    name: str, cache_dir: Path, policy: Path, recipe: LabellerRecipe, seed: int | None
) -> Path:
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    decides = [asdict(recipe), MISTAKES, LETTERS, WORDING, policy.name]

    def write(directory: Path) -> None:
        # A token each for the verdicts, which are then one choice of the sampler, and for what
        # every claim says, so that the claims are short.
        tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
        verdicts = [AddedToken(word, single_word=True, normalized=False) for word in (YES, NO)]
        tokenizer.add_tokens([*verdicts, *(AddedToken(part, normalized=False) for part in WORDING)])
        with reproducible(recipe.seed), shown_warmup(recipe.min_steps, "labeller") as show:
            model = untrained_labeller(policy, tokenizer)
            report = train(model, ClaimTask.open(policy, tokenizer, recipe.seed), recipe, show)
        save_warmed(directory, model, tokenizer, report)
        if (preprocessor := policy / "preprocessor_config.json").exists():
            shutil.copy(preprocessor, directory)

    return made_once(cache_dir / f"{name}-{digest(decides)}", write)


def untrained_labeller(policy: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The policy, with rows for the tokens that it does not have."""
    # The new rows are drawn like those of a new model. At the mean of the old rows, which is the
    # default, yes and no would start alike.
    disable_progress_bar()
    family = model_family(read_config(policy).model_type)
    model = family.auto_class.from_pretrained(policy, dtype=torch.float32, local_files_only=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    family.prepare(model)
    return model.train()


def train(
    model: PreTrainedModel, task: ClaimTask, recipe: LabellerRecipe, on_step: OnStep
) -> LabellerReport:
    """Train `model` in place until it is ready or out of steps."""
    started = time.monotonic()
    rng = np.random.default_rng(recipe.seed)

    def loss_of(first: int) -> Tensor:
        questions = task.training_questions(first, recipe.examples_per_step)
        mistakes = rng.choice(len(MISTAKES), size=len(questions), p=recipe.shares)
        wrong = [
            wrong_answer(rng, int(question.answer), question.addends, MISTAKES[mistake])
            for question, mistake in zip(questions, mistakes, strict=True)
        ]
        return labelling_loss(model, task, questions, wrong, recipe)

    def measure() -> dict[str, float]:
        return heldout_accuracy(model, task, recipe.heldout_questions)

    def is_enough(accuracy: dict[str, float]) -> bool:
        return balanced(accuracy, recipe.shares) >= recipe.enough

    steps, accuracy = train_in_rounds(model, recipe, loss_of, measure, is_enough, on_step)
    return LabellerReport(
        seed=recipe.seed,
        steps=steps,
        seconds=round(time.monotonic() - started, 1),
        balanced=round(balanced(accuracy, recipe.shares), 4),
        accuracy=accuracy,
        is_ready=is_enough(accuracy),
    )


def labelling_loss(
    model: PreTrainedModel,
    task: ClaimTask,
    questions: Sequence[Question],
    wrong: Sequence[str],
    recipe: LabellerRecipe,
) -> Tensor:
    """Cross-entropy of the verdicts, and of what is learned beside them.

    questions, wrong: N questions and a wrong answer to each.
    """
    # One forward for both halves: the first N rows are right, the last N wrong.
    right = [question.answer for question in questions]
    token_ids, lengths, hidden = _states(model, task, [*questions, *questions], [*right, *wrong])
    head, count = model.get_output_embeddings(), len(questions)
    at_end = hidden[torch.arange(2 * count), lengths - 1]  # [2N, H]
    # The verdict is sampled after the last token of a claim's prompt.
    yes, no = verdict_ids(task.tokenizer)
    loss = cross_entropy(head(at_end), torch.tensor([yes] * count + [no] * count))

    # Foresight: the two digits of the right answer stand just before WORDING[2], and each is to be
    # foretold from the position before it. Wrong answers are not learned.
    token_ids, hidden = token_ids[:count], hidden[:count]
    follows = token_ids == task.tokenizer.convert_tokens_to_ids(WORDING[1])  # [N, T]
    for digit in (1, 2):
        before = hidden[follows.roll(digit - 1, dims=1)]  # [N, H]
        answer = token_ids[follows.roll(digit, dims=1)]  # [N]
        loss = loss + recipe.foresight * cross_entropy(head(before), answer)
    if task.pictures is None:
        return loss
    # Naming: at each visual token of the picture, the digit that is shown there.
    seen = hidden[token_ids == task.tokenizer.convert_tokens_to_ids(PICTURE)]  # [digits, H]
    digits = "".join(str(digit) for question in questions for digit in question.addends)
    names = torch.tensor(task.tokenizer(digits)["input_ids"])  # [digits]
    return loss + recipe.naming * cross_entropy(head(seen), names)


def _states(
    model: PreTrainedModel, task: ClaimTask, questions: Sequence[Question], answers: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [B, T] of claims, padded on the right where causality hides it, lengths [B], and
    hidden states [B, T, H]."""
    rows = task.rows(questions, answers)
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.full((len(rows), int(lengths.max())), task.tokenizer.pad_token_id)
    for padded, row in zip(token_ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    visual = task.visual_arguments(questions, rows, token_ids)
    backbone = model.base_model(input_ids=token_ids, use_cache=False, **visual)
    return token_ids, lengths, backbone.last_hidden_state


@torch.no_grad()
def p_yes_and_no(
    model: PreTrainedModel, task: ClaimTask, questions: Sequence[Question], answers: Sequence[str]
) -> Tensor:
    """How probable a labeller finds yes and no, of each claim: [B, 2]."""
    _, lengths, hidden = _states(model, task, questions, answers)
    at_end = hidden[torch.arange(len(lengths)), lengths - 1]  # [B, H]
    probabilities = model.get_output_embeddings()(at_end).softmax(dim=-1)  # [B, V]
    return probabilities[:, list(verdict_ids(task.tokenizer))]


def heldout_accuracy(
    model: PreTrainedModel, task: ClaimTask, num_questions: int
) -> dict[str, float]:
    """Share of claims about held-out questions labelled right: right ones, and by mistake."""
    # Always the same wrong answers, so that two measurements differ by the model alone.
    questions, rng = task.heldout_questions(num_questions), np.random.default_rng(0)
    right = [question.answer for question in questions]
    labels = {"right": p_yes_and_no(model, task, questions, right)}
    for mistake in MISTAKES:
        wrong = [
            wrong_answer(rng, int(question.answer), question.addends, mistake)
            for question in questions
        ]
        # Flipped, so that the verdict that is right stands first for every kind of claim.
        labels[mistake] = p_yes_and_no(model, task, questions, wrong).flip(1)
    return {
        kind: int((each[:, 0] > each[:, 1]).sum()) / num_questions for kind, each in labels.items()
    }


def balanced(accuracy: dict[str, float], shares: Sequence[float]) -> float:
    """Share labelled right where half the claims are right and the others err by `shares`."""
    # As claims are in training. A labeller that always says yes gets a half.
    wrong = sum(share * accuracy[mistake] for share, mistake in zip(shares, MISTAKES, strict=True))
    return (accuracy["right"] + wrong) / 2


def verdict_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    yes, no = tokenizer.convert_tokens_to_ids([YES, NO])
    return yes, no
