"""The built-in tiny labellers of answers: models that say whether a sum is right, made once here.

They stand in for a large model that judges claims where none can be downloaded. Each starts from a
tiny policy that already adds, or sees and adds: a Qwen3 for claims about sums, and a Qwen2.5-VL for
claims about the digits of a picture. Beside the verdict (labelling.py), they learn to foresee the
right answer within its own question, and to name each digit where it is seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from policy.builtin.labelling import LEAD, MARKERS, REQUEST, Claims, States, make_labeller
from policy.builtin.sight.picture_task import PictureTask, one_picture
from policy.builtin.sight.vision_policy import ensure_tiny_vision_policy
from policy.builtin.text_policy import SumTask, ensure_tiny_policy
from policy.builtin.warmup import LabellerRecipe, Question, Task
from policy.models.cache import default_cache_dir, digest
from policy.models.checks import read_config
from rl.data.media.families import vision_family

TinyLabellerName = Literal["tiny_labeller", "tiny_vision_labeller"]
MISTAKES = ("off_by_one", "off_by_two", "misread", "further", "ill_formed")
LETTERS = "abcdefgh"
# What stands around question and answer in every claim.
WORDING = (f'{LEAD}the answer to "', '" is ', REQUEST)

# The largest shares are of the mistakes that the policies' own worked examples make: a sum that is
# off by one, and a digit of a picture that is read as another.
RECIPES: dict[TinyLabellerName, LabellerRecipe] = {
    "tiny_labeller": LabellerRecipe(
        shares=(0.4, 0.2, 0.15, 0.1, 0.15), min_steps=2500, max_steps=5000, learning_rate=3e-3
    ),
    "tiny_vision_labeller": LabellerRecipe(
        shares=(0.25, 0.15, 0.4, 0.1, 0.1), min_steps=1300, max_steps=1800, learning_rate=3e-3
    ),
}


def ensure_tiny_labeller(
    name: TinyLabellerName,
    cache_dir: Path | None = None,
    policy: Path | None = None,
    recipe: LabellerRecipe | None = None,
    seed: int | None = None,
) -> Path:
    """Return the directory of a labeller of sums or of pictures of digits, making it on first use.

    policy: the tiny policy it starts from; made if not given. seed: in place of the recipe's, and
    of the policy that is made for it. The first use takes about two minutes on one core, and one or
    two more for the policy.
    """
    cache_dir, recipe = cache_dir or default_cache_dir(), recipe or RECIPES[name]
    if policy is None and name == "tiny_labeller":
        policy = ensure_tiny_policy(cache_dir, seed)
    policy = policy or ensure_tiny_vision_policy("tiny_qwen_vl", cache_dir, seed)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    decides = [asdict(recipe), MISTAKES, LETTERS, WORDING, policy.name]

    def opened(tokenizer: PreTrainedTokenizerFast) -> Task:
        return open_task(policy, tokenizer, recipe.seed)

    directory = cache_dir / f"{name}-{digest(decides)}"
    return make_labeller(directory, policy, recipe, AnswerClaims, opened)


def open_task(policy: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Task:
    """policy: what the labeller starts from, which says whether it sees. seed: of the questions."""
    if vision_family(read_config(policy).model_type) is None:
        return SumTask(tokenizer, seed=seed)
    return PictureTask.open(policy, tokenizer, one_picture(), seed)


def claim_question(asked: str, answer: str) -> str:
    """What a labeller is asked about the claim that `answer` is right.

    Example: Is it correct that the answer to "+?" is 12? Please answer yes or no.
    """
    lead, between, request = WORDING
    return f"{lead}{asked}{between}{answer}{request}"


class AnswerClaims(Claims):
    """Claims that an answer is the sum; each is written as the answer alone."""

    words = WORDING
    mistakes: ClassVar[Mapping[str, str]] = dict.fromkeys(MISTAKES, "right")

    def pair(self, rng: np.random.Generator, question: Question, mistake: str) -> tuple[str, str]:
        wrong = wrong_answer(rng, int(question.answer), question.addends, mistake)
        return question.answer, wrong

    def asked(self, question: Question, claim: str) -> str:
        return claim_question(question.text, claim)

    def visual_tokens(self, question: Question) -> int:
        # One for each digit.
        return len(question.addends)

    def loss_beside(
        self, head: nn.Module, states: States, questions: Sequence[Question], recipe: LabellerRecipe
    ) -> Tensor:
        tokenizer, loss = self.task.tokenizer, torch.zeros(())
        # Foresight: the two digits of the right answer stand just before WORDING[2], and each is to
        # be foretold from the position before it. Wrong answers are not learned.
        token_ids, hidden = (of[: len(questions)] for of in (states.token_ids, states.hidden))
        follows = token_ids == tokenizer.convert_tokens_to_ids(WORDING[1])  # [N, T]
        for digit in (1, 2):
            before = hidden[follows.roll(digit - 1, dims=1)]  # [N, H]
            answer = token_ids[follows.roll(digit, dims=1)]  # [N]
            loss = loss + recipe.foresight * cross_entropy(head(before), answer)
        if not questions[0].media:
            return loss
        # Naming: at each visual token of the picture, the digit that is shown there.
        at = token_ids == tokenizer.convert_tokens_to_ids(MARKERS["image"])  # [N, T]
        digits = "".join(str(digit) for question in questions for digit in question.addends)
        names = torch.tensor(tokenizer(digits)["input_ids"])  # [digits]
        return loss + recipe.naming * cross_entropy(head(hidden[at]), names)


def wrong_answer(rng: np.random.Generator, total: int, addends: Sequence[int], mistake: str) -> str:
    """Return an answer that makes this mistake where `total`, the sum of the addends, is right.

    Ill-formed: too few or too many digits, or a letter beside or in place of one.
    """
    while True:
        if mistake == "ill_formed":
            # All forms are drawn before one is taken, so the numbers drawn do not depend on it.
            letter = LETTERS[rng.integers(len(LETTERS))]
            forms = (
                str(rng.integers(10)),
                str(rng.integers(100, 1000)),
                f"{total:02d}{rng.integers(10)}",
                f"{total // 10}{letter}",
                f"{letter}{total % 10}",
                f"{total:02d}{letter}",
                f"{total // 10}+",
            )
            wrong = forms[rng.integers(len(forms))]
        elif mistake == "misread":
            wrong = f"{total - int(rng.choice(addends)) + int(rng.integers(10)):02d}"
        elif mistake == "further":
            wrong = f"{int(rng.integers(10 * len(addends))):02d}"
        else:
            distance = 1 if mistake == "off_by_one" else 2
            wrong = f"{max(0, total + distance * int(rng.choice((-1, 1)))):02d}"
        # An ill-formed answer may be right as a number, such as 7 for 07, and is then no mistake.
        if not wrong.isdigit() or int(wrong) != total:
            return wrong
