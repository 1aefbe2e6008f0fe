"""How a built-in policy becomes a labeller, which says yes or no to a claim.

Every question is asked twice in a batch, once with a right claim and once with a wrong one. After
900 steps of text, this contrast makes the difference between a guess and two claims in three that
are labelled right. What a claim may be is a concern of its own (labeller.py for answers to sums,
sight/description_labeller.py for what a picture shows).
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from policy.builtin.warmup import (
    LabellerRecipe,
    Question,
    Task,
    laid_out,
    reproducible,
    save_warmed,
    shown_warmup,
)
from policy.models.cache import made_once
from policy.models.checks import read_config
from policy.models.family import model_family
from policy.models.stages import OnStep, train_in_rounds

YES, NO = "yes", "no"
# What stands around every claim (rl/align/claims/rules.py).
LEAD, REQUEST = "Is it correct that ", "? Please answer yes or no."
# The markers of the one policy with pictures that a labeller starts from.
MARKERS: Mapping[str, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


class States(NamedTuple):
    """What a labeller makes of B claims."""

    token_ids: Tensor
    """[B, T]"""
    hidden: Tensor
    """[B, T, H], of the last layer."""
    early: Tensor
    """[B, T, H], of the layer before it, behind the same norm."""
    at_end: Tensor
    """[B, H], of the last layer where the verdict is sampled."""


@dataclass(frozen=True)
class Claims(ABC):
    """Right and wrong claims of one kind, which a labeller learns to tell apart."""

    task: Task
    """The questions that they are about."""

    words: ClassVar[tuple[str, ...]]
    """What claims say; a token each, so that they are short."""
    mistakes: ClassVar[Mapping[str, str]]
    """The kinds of wrong claim, each with the kind of right claim that it is told from."""

    @abstractmethod
    def pair(self, rng: np.random.Generator, question: Question, mistake: str) -> tuple[str, str]:
        """A right claim, and a wrong one that makes this mistake."""

    def pairs(
        self, rng: np.random.Generator, questions: Sequence[Question], shares: Sequence[float]
    ) -> list[tuple[str, str]]:
        """A pair of each question; shares: how often it makes each of the mistakes."""
        mistakes = rng.choice(tuple(self.mistakes), size=len(questions), p=shares)
        both = zip(questions, mistakes, strict=True)
        return [self.pair(rng, question, str(mistake)) for question, mistake in both]

    @abstractmethod
    def asked(self, question: Question, claim: str) -> str:
        """What a labeller is asked about a claim, as rl/align/claims/rules.py asks it."""

    @abstractmethod
    def visual_tokens(self, question: Question) -> int:
        """How many tokens a picture or video of the question takes; all take as many."""

    @abstractmethod
    def loss_beside(
        self, head: nn.Module, states: States, questions: Sequence[Question], recipe: LabellerRecipe
    ) -> Tensor:
        """What is learned beside the verdicts.

        head: the output layer. states: of a right claim to each of N questions, then of a wrong one
        to each.
        """


def make_labeller(
    directory: Path,
    policy: Path,
    recipe: LabellerRecipe,
    kind: type[Claims],
    open_task: Callable[[PreTrainedTokenizerFast], Task],
) -> Path:
    """Return the directory, with the labeller in it, which starts from a policy."""

    def write(directory: Path) -> None:
        # A token each for the verdicts, which are then one choice of the sampler, and for what
        # every claim says.
        tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
        verdicts = [AddedToken(word, single_word=True, normalized=False) for word in (YES, NO)]
        words = [AddedToken(word, normalized=False) for word in kind.words]
        tokenizer.add_tokens([*verdicts, *words])
        with reproducible(recipe.seed), shown_warmup(recipe.min_steps, "labeller") as show:
            model = untrained_labeller(policy, tokenizer)
            report = train(model, kind(open_task(tokenizer)), recipe, show)
        save_warmed(directory, model, tokenizer, report)
        if (preprocessor := policy / "preprocessor_config.json").exists():
            shutil.copy(preprocessor, directory)

    return made_once(directory, write)


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
    model: PreTrainedModel, claims: Claims, recipe: LabellerRecipe, on_step: OnStep
) -> dict[str, Any]:
    """Train `model` in place until it is ready or out of steps; return the report."""
    rng = np.random.default_rng(recipe.seed)

    def loss_of(first: int) -> Tensor:
        questions = claims.task.questions(first, recipe.examples_per_step, heldout=False)
        pairs = claims.pairs(rng, questions, recipe.shares)
        return labelling_loss(model, claims, questions, pairs, recipe)

    def measure() -> tuple[dict[str, Any], bool]:
        accuracy = heldout_accuracy(model, claims, recipe.heldout_questions)
        share = balanced(accuracy, claims.mistakes, recipe.shares)
        return {"balanced": round(share, 4), "accuracy": accuracy}, share >= recipe.enough

    return {"seed": recipe.seed} | train_in_rounds(
        model.parameters(), recipe, loss_of, measure, on_step
    )


def labelling_loss(
    model: PreTrainedModel,
    claims: Claims,
    questions: Sequence[Question],
    pairs: Sequence[tuple[str, str]],
    recipe: LabellerRecipe,
) -> Tensor:
    """Cross-entropy of the verdicts, and of what is learned beside them.

    pairs: a right claim and a wrong one to each of N questions.
    """
    # One forward for both halves: the first N rows are right, the last N wrong.
    right, wrong = zip(*pairs, strict=True)
    count, twice = len(questions), [*questions, *questions]
    states = _states(model, claims, twice, [*right, *wrong])
    head = model.get_output_embeddings()
    # The verdict is sampled after the last token of a claim's prompt.
    yes, no = claims.task.tokenizer.convert_tokens_to_ids([YES, NO])
    loss = cross_entropy(head(states.at_end), torch.tensor([yes] * count + [no] * count))
    return loss + claims.loss_beside(head, states, questions, recipe)


def claim_rows(
    claims: Claims, questions: Sequence[Question], stated: Sequence[str]
) -> list[list[int]]:
    """Token ids of each claim up to where its verdict is sampled, visual tokens in place."""
    messages = []
    for question, claim in zip(questions, stated, strict=True):
        content: Any = claims.asked(question, claim)
        if question.media:
            parts = [{"type": medium.kind} for medium in question.media]
            content = [*parts, {"type": "text", "text": content}]
        messages.append([{"role": "user", "content": content}])
    tokenizer = claims.task.tokenizer
    texts = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    count = claims.visual_tokens(questions[0])
    for marker in MARKERS.values():
        texts = [text.replace(marker, marker * count) for text in texts]
    return tokenizer(texts)["input_ids"]


def _states(
    model: PreTrainedModel, claims: Claims, questions: Sequence[Question], stated: Sequence[str]
) -> States:
    rows = claim_rows(claims, questions, stated)
    token_ids, visual = laid_out(claims.task, questions, rows)
    made = model.base_model(
        input_ids=token_ids, use_cache=False, output_hidden_states=True, **visual
    )
    hidden, early = made.last_hidden_state, made.hidden_states[-2]
    ends = torch.tensor([len(row) - 1 for row in rows])
    at_end = hidden[torch.arange(len(rows)), ends]
    return States(token_ids, hidden, model.get_decoder().norm(early), at_end)


@torch.no_grad()
def p_yes_and_no(
    model: PreTrainedModel, claims: Claims, questions: Sequence[Question], stated: Sequence[str]
) -> Tensor:
    """How probable a labeller finds yes and no, of each claim: [B, 2]."""
    states = _states(model, claims, questions, stated)
    probabilities = model.get_output_embeddings()(states.at_end).softmax(dim=-1)  # [B, V]
    return probabilities[:, claims.task.tokenizer.convert_tokens_to_ids([YES, NO])]


def heldout_accuracy(
    model: PreTrainedModel, claims: Claims, num_questions: int
) -> dict[str, float]:
    """Share of claims about held-out questions labelled right, by kind: right ones and mistakes."""
    # Always the same wrong claims, so that two measurements differ by the model alone.
    questions = claims.task.questions(0, num_questions, heldout=True)
    rng, accuracy = np.random.default_rng(0), {}
    for mistake, kind in claims.mistakes.items():
        pairs = [claims.pair(rng, question, mistake) for question in questions]
        right, wrong = zip(*pairs, strict=True)
        if kind not in accuracy:
            p_yes, p_no = p_yes_and_no(model, claims, questions, right).unbind(1)
            accuracy[kind] = (p_yes > p_no).double().mean().item()
        p_yes, p_no = p_yes_and_no(model, claims, questions, wrong).unbind(1)
        accuracy[mistake] = (p_no > p_yes).double().mean().item()
    return accuracy


def balanced(
    accuracy: Mapping[str, float], mistakes: Mapping[str, str], shares: Sequence[float]
) -> float:
    """Share labelled right where half the claims are right and the others err by `shares`."""
    # As claims are in training. A labeller that always says yes gets a half.
    both = zip(shares, mistakes.items(), strict=True)
    return sum(share * (accuracy[right] + accuracy[wrong]) / 2 for share, (wrong, right) in both)
