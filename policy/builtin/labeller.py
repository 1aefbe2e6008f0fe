"""The built-in tiny labellers: models that say yes or no to a claim, made once on this machine.

They stand in for a large model that judges claims where none can be downloaded. Each starts from a
tiny policy that already adds, or sees and adds: a Qwen3 for claims about sums, and a Qwen2.5-VL for
claims about the digits of a picture. Every question is asked twice in a batch, once with a right
answer and once with a wrong one. After 900 steps of text, this contrast makes the difference
between a guess and two claims in three that are labelled right. Beside the verdict, the labellers
learn to foresee the right answer within its own question, and to name each digit where it is seen.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from policy.builtin.sight.picture_task import PictureTask, one_picture
from policy.builtin.sight.vision_policy import ensure_tiny_vision_policy
from policy.builtin.text_policy import SumTask, ensure_tiny_policy
from policy.builtin.warmup import (
    LabellerRecipe,
    Question,
    Task,
    laid_out,
    reproducible,
    save_warmed,
    shown_warmup,
)
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.checks import read_config
from policy.models.family import model_family
from policy.models.stages import OnStep, train_in_rounds
from rl.data.media.families import vision_family

TinyLabellerName = Literal["tiny_labeller", "tiny_vision_labeller"]
MISTAKES = ("off_by_one", "off_by_two", "misread", "further", "ill_formed")
LETTERS = "abcdefgh"

YES, NO = "yes", "no"
# What stands around question and answer in every claim; a token each, so that claims are short.
WORDING = ('Is it correct that the answer to "', '" is ', "? Please answer yes or no.")
# The marker of the one policy with pictures that a labeller starts from.
PICTURE = "<|image_pad|>"

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

    def write(directory: Path) -> None:
        # A token each for the verdicts, which are then one choice of the sampler, and for what
        # every claim says, so that the claims are short.
        tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
        verdicts = [AddedToken(word, single_word=True, normalized=False) for word in (YES, NO)]
        tokenizer.add_tokens([*verdicts, *(AddedToken(part, normalized=False) for part in WORDING)])
        with reproducible(recipe.seed), shown_warmup(recipe.min_steps, "labeller") as show:
            model = untrained_labeller(policy, tokenizer)
            report = train(model, open_task(policy, tokenizer, recipe.seed), recipe, show)
        save_warmed(directory, model, tokenizer, report)
        if (preprocessor := policy / "preprocessor_config.json").exists():
            shutil.copy(preprocessor, directory)

    return made_once(cache_dir / f"{name}-{digest(decides)}", write)


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


def claim_rows(
    task: Task, questions: Sequence[Question], answers: Sequence[str]
) -> list[list[int]]:
    """Token ids of each claim up to where its verdict is sampled, visual tokens in place."""
    messages = []
    for question, answer in zip(questions, answers, strict=True):
        content: Any = claim_question(question.text, answer)
        if question.media:
            content = [{"type": "image"}, {"type": "text", "text": content}]
        messages.append([{"role": "user", "content": content}])
    texts = task.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    # All pictures have the same size, and a visual token for each digit.
    visual = PICTURE * len(questions[0].addends)
    return task.tokenizer([text.replace(PICTURE, visual) for text in texts])["input_ids"]


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
    model: PreTrainedModel, task: Task, recipe: LabellerRecipe, on_step: OnStep
) -> dict[str, Any]:
    """Train `model` in place until it is ready or out of steps; return the report."""
    rng = np.random.default_rng(recipe.seed)

    def loss_of(first: int) -> Tensor:
        questions = task.questions(first, recipe.examples_per_step, heldout=False)
        wrong = wrong_answers(rng, questions, recipe.shares)
        return labelling_loss(model, task, questions, wrong, recipe)

    def measure() -> tuple[dict[str, Any], bool]:
        accuracy = heldout_accuracy(model, task, recipe.heldout_questions)
        share = balanced(accuracy, recipe.shares)
        return {"balanced": round(share, 4), "accuracy": accuracy}, share >= recipe.enough

    return {"seed": recipe.seed} | train_in_rounds(
        model.parameters(), recipe, loss_of, measure, on_step
    )


def labelling_loss(
    model: PreTrainedModel,
    task: Task,
    questions: Sequence[Question],
    wrong: Sequence[str],
    recipe: LabellerRecipe,
) -> Tensor:
    """Cross-entropy of the verdicts, and of what is learned beside them.

    questions, wrong: N questions and a wrong answer to each.
    """
    # One forward for both halves: the first N rows are right, the last N wrong.
    right, count = [question.answer for question in questions], len(questions)
    token_ids, hidden, at_end = _states(model, task, [*questions, *questions], [*right, *wrong])
    head = model.get_output_embeddings()
    # The verdict is sampled after the last token of a claim's prompt.
    yes, no = task.tokenizer.convert_tokens_to_ids([YES, NO])
    loss = cross_entropy(head(at_end), torch.tensor([yes] * count + [no] * count))

    # Foresight: the two digits of the right answer stand just before WORDING[2], and each is to be
    # foretold from the position before it. Wrong answers are not learned.
    token_ids, hidden = token_ids[:count], hidden[:count]
    follows = token_ids == task.tokenizer.convert_tokens_to_ids(WORDING[1])  # [N, T]
    for digit in (1, 2):
        before = hidden[follows.roll(digit - 1, dims=1)]  # [N, H]
        answer = token_ids[follows.roll(digit, dims=1)]  # [N]
        loss = loss + recipe.foresight * cross_entropy(head(before), answer)
    if not questions[0].media:
        return loss
    # Naming: at each visual token of the picture, the digit that is shown there.
    seen = hidden[token_ids == task.tokenizer.convert_tokens_to_ids(PICTURE)]  # [digits, H]
    digits = "".join(str(digit) for question in questions for digit in question.addends)
    names = torch.tensor(task.tokenizer(digits)["input_ids"])  # [digits]
    return loss + recipe.naming * cross_entropy(head(seen), names)


def _states(
    model: PreTrainedModel, task: Task, questions: Sequence[Question], answers: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [B, T] of claims, hidden states [B, T, H], and those of the last tokens [B, H]."""
    rows = claim_rows(task, questions, answers)
    token_ids, visual = laid_out(task, questions, rows)
    hidden = model.base_model(input_ids=token_ids, use_cache=False, **visual).last_hidden_state
    ends = torch.tensor([len(row) - 1 for row in rows])
    return token_ids, hidden, hidden[torch.arange(len(rows)), ends]


@torch.no_grad()
def p_yes_and_no(
    model: PreTrainedModel, task: Task, questions: Sequence[Question], answers: Sequence[str]
) -> Tensor:
    """How probable a labeller finds yes and no, of each claim: [B, 2]."""
    _, _, at_end = _states(model, task, questions, answers)
    probabilities = model.get_output_embeddings()(at_end).softmax(dim=-1)  # [B, V]
    return probabilities[:, task.tokenizer.convert_tokens_to_ids([YES, NO])]


def heldout_accuracy(model: PreTrainedModel, task: Task, num_questions: int) -> dict[str, float]:
    """Share of claims about held-out questions labelled right: right ones, and by mistake."""
    # Always the same wrong answers, so that two measurements differ by the model alone.
    questions, rng = task.questions(0, num_questions, heldout=True), np.random.default_rng(0)
    right = [question.answer for question in questions]
    labels = {"right": p_yes_and_no(model, task, questions, right)}
    for mistake in MISTAKES:
        wrong = [wrong_answer(rng, int(q.answer), q.addends, mistake) for q in questions]
        # Flipped, so that the verdict that is right stands first for every kind of claim.
        labels[mistake] = p_yes_and_no(model, task, questions, wrong).flip(1)
    return {kind: (p[:, 0] > p[:, 1]).double().mean().item() for kind, p in labels.items()}


def balanced(accuracy: dict[str, float], shares: Sequence[float]) -> float:
    """Share labelled right where half the claims are right and the others err by `shares`."""
    # As claims are in training. A labeller that always says yes gets a half.
    wrong = sum(share * accuracy[mistake] for share, mistake in zip(shares, MISTAKES, strict=True))
    return (accuracy["right"] + wrong) / 2


def wrong_answers(
    rng: np.random.Generator, questions: Sequence[Question], shares: Sequence[float]
) -> list[str]:
    """A wrong answer to each question; shares: how often it makes each of MISTAKES."""
    mistakes = rng.choice(MISTAKES, size=len(questions), p=shares)
    return [
        wrong_answer(rng, int(question.answer), question.addends, mistake)
        for question, mistake in zip(questions, mistakes, strict=True)
    ]


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
