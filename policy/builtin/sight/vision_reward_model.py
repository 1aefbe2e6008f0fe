"""The built-in tiny reward model that sees: prefers the right sum of a picture's digits, made once.

It stands in for a vision-language reward model as reward_model.py does for one of text. It is the
tiny Qwen2.5-VL policy with a score in place of its output layer, trained on pairs of answers to one
picture (https://en.wikipedia.org/wiki/Bradley-Terry_model) in rounds, as the labellers are: TRL's
trainer of reward models shows no pictures. Beside its preferences it learns, as they do, to name
each digit where it is seen and to foresee the right answer.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from policy.builtin.labeller import MISTAKES, AnswerClaims, wrong_answer
from policy.builtin.labelling import MARKERS
from policy.builtin.sight.picture_task import PictureTask, one_picture
from policy.builtin.sight.vision_policy import ensure_tiny_vision_policy
from policy.builtin.warmup import (
    LabellerRecipe,
    Question,
    laid_out,
    reproducible,
    save_warmed,
    shown_warmup,
)
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.qwen_vl import Qwen2_5_VLForSequenceClassification
from policy.models.stages import train_in_rounds

RECIPE = LabellerRecipe(
    shares=(0.25, 0.15, 0.4, 0.1, 0.1),
    min_steps=1300,
    max_steps=1800,
    learning_rate=3e-3,
    enough=0.95,
)


def ensure_tiny_vision_reward_model(
    cache_dir: Path | None = None,
    policy: Path | None = None,
    recipe: LabellerRecipe = RECIPE,
    seed: int | None = None,
) -> Path:
    """Return the directory of a Qwen2_5_VLForSequenceClassification, making it on first use.

    policy: the tiny policy it starts from; made if not given. seed: in place of the recipe's, and
    of the policy that is made for it. The first use takes about three minutes on one core, and two
    for the policy. `warmup.json` in it says how well it orders held-out pairs.
    """
    cache_dir = cache_dir or default_cache_dir()
    policy = policy or ensure_tiny_vision_policy("tiny_qwen_vl", cache_dir, seed)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    decides = [asdict(recipe), MISTAKES, policy.name]

    def write(directory: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
        task = PictureTask.open(policy, tokenizer, one_picture(), recipe.seed)
        # They would tell at length that the policy has no score, and has an output layer.
        disable_progress_bar()
        set_verbosity_error()
        with reproducible(recipe.seed), shown_warmup(recipe.min_steps, "reward model") as show:
            lesson = Preferring(task, policy, recipe)
            weights = [*lesson.model.parameters(), *lesson.digits.parameters()]
            report = train_in_rounds(weights, recipe, lesson.loss, lesson.measure, show)
        save_warmed(directory, lesson.model, tokenizer, {"seed": recipe.seed} | report)
        shutil.copy(policy / "preprocessor_config.json", directory)

    return made_once(cache_dir / f"tiny_vision_reward-{digest(decides)}", write)


class Preferring:
    """Lets a model prefer the right answer to a question about a picture to a wrong one."""

    def __init__(self, task: PictureTask, policy: Path, recipe: LabellerRecipe) -> None:
        self.task, self.recipe = task, recipe
        self.model = Qwen2_5_VLForSequenceClassification.from_pretrained(
            policy, num_labels=1, dtype=torch.float32
        ).train()
        # Names a digit, those of the picture and those of the answer; no part of what is saved.
        self.digits = nn.Linear(self.model.config.text_config.hidden_size, 10)
        self._rng = np.random.default_rng(recipe.seed)

    def loss(self, first: int) -> Tensor:
        """Of the pairs of a step, given the number of the first question."""
        recipe, task = self.recipe, self.task
        questions = task.questions(first, recipe.examples_per_step, heldout=False)
        pairs = AnswerClaims(task).pairs(self._rng, questions, recipe.shares)
        (right, wrong), count = zip(*pairs, strict=True), len(questions)
        # One forward for both halves of the pairs, which share their pictures.
        token_ids, hidden, ends = self._states([*questions, *questions], [*right, *wrong])
        scores = self.model.score(hidden[torch.arange(2 * count), ends])[:, 0]  # [2 * N]
        loss = softplus(scores[count:] - scores[:count]).mean()
        # Naming: at each visual token of the picture, the digit that is shown there.
        token_ids, hidden = token_ids[:count], hidden[:count]
        seen = hidden[
            token_ids == task.tokenizer.convert_tokens_to_ids(MARKERS["image"])
        ]  # [N digits, H]
        shown = torch.tensor([digit for question in questions for digit in question.addends])
        loss = loss + recipe.naming * cross_entropy(self.digits(seen), shown)
        # Foresight: the two digits of the right answer stand before the end of its row, and each is
        # foretold from the position before it.
        for place in (0, 1):
            before = hidden[torch.arange(count), ends[:count] - 3 + place]  # [N, H]
            foreseen = torch.tensor([int(answer[place]) for answer in right])
            loss = loss + recipe.foresight * cross_entropy(self.digits(before), foreseen)
        return loss

    def _states(
        self, questions: Sequence[Question], answers: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [B, T] of questions with answers, hidden states [B, T, H], last places [B]."""
        rows = answer_rows(self.task, questions, answers)
        token_ids, visual = laid_out(self.task, questions, rows)
        hidden = self.model.base_model(input_ids=token_ids, use_cache=False, **visual)
        return token_ids, hidden.last_hidden_state, torch.tensor([len(row) - 1 for row in rows])

    @torch.no_grad()
    def measure(self) -> tuple[dict[str, Any], bool]:
        """Share of held-out pairs in the right order, by mistake, and whether that is enough."""
        # Always the same wrong answers, so that two measurements differ by the model alone.
        rng = np.random.default_rng(0)
        questions = self.task.questions(0, self.recipe.heldout_questions, heldout=True)
        answers = {"right": [question.answer for question in questions]}
        for mistake in MISTAKES:
            wrong = (wrong_answer(rng, int(q.answer), q.addends, mistake) for q in questions)
            answers[mistake] = list(wrong)
        scores = {}
        for kind, given in answers.items():
            _, hidden, ends = self._states(questions, given)
            scores[kind] = self.model.score(hidden[torch.arange(len(given)), ends])[:, 0]
        accuracy = {m: (scores["right"] > scores[m]).double().mean().item() for m in MISTAKES}
        shares = zip(self.recipe.shares, accuracy.values(), strict=True)
        ordered = sum(share * one for share, one in shares)
        figures = {"ordered": round(ordered, 4), "accuracy": accuracy}
        return figures, ordered >= self.recipe.enough


def answer_rows(
    task: PictureTask, questions: Sequence[Question], answers: Sequence[str]
) -> list[list[int]]:
    """Token ids of each question with its answer, as a preference model reads them."""
    messages: list[Any] = [
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.text}]},
            {"role": "assistant", "content": answer},
        ]
        for one, answer in zip(questions, answers, strict=True)
    ]
    texts = task.tokenizer.apply_chat_template(messages, tokenize=False)
    # All pictures have the same size, and a visual token for each digit.
    picture, count = MARKERS["image"], len(questions[0].addends)
    texts = [text.replace(picture, picture * count) for text in texts]
    return task.tokenizer(texts)["input_ids"]
