"""The built-in labeller of descriptions: says whether a claim about coloured shapes is true.

It starts from the policy that describes them, of the Qwen2.5-VL architecture, and is asked about
one claim at a time: how many shapes there are, or which one a part of the picture or video shows.
Beside the verdict (labelling.py), it learns to give one at each word that may be wrong, to foresee
the words of right claims, and to name colour and form where they are seen.

What is foreseen and named is so in the layer before the last. In the last one it comes too late to
be compared with what is claimed: a shape that another part shows then passes for right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from policy.builtin.labelling import (
    LEAD,
    MARKERS,
    NO,
    REQUEST,
    YES,
    Claims,
    States,
    make_labeller,
)
from policy.builtin.sight.describing_task import NOTHING, DescribingTask, all_ways, another
from policy.builtin.sight.vision_policy import ensure_tiny_vision_policy
from policy.builtin.warmup import LabellerRecipe, Question
from policy.models.cache import default_cache_dir, digest
from rl.data.tasks.pictures.descriptions import (
    NUMBERS,
    Shape,
    count_claim,
    part_claim,
)
from rl.data.tasks.pictures.shapes import COLOURS, FORMS

# Beside the policy's own (describing_task.py), which bring the space before them as these do.
WORDS = (LEAD.rstrip(), " there are", REQUEST)
MISTAKES: Mapping[str, str] = {
    "number": "right_number",
    "colour": "right_part",
    "form": "right_part",
    # Of another part; where all parts show the same, another colour.
    "elsewhere": "right_part",
    # In an empty part; where there is none, another colour and form.
    "invented": "right_part",
}
"""The kinds of wrong claim, each with the kind of right claim beside it."""

RECIPE = LabellerRecipe(
    # Of the mistakes that a description makes, with more of those that are rare.
    shares=(0.1, 0.2, 0.2, 0.35, 0.15),
    min_steps=800,
    max_steps=1200,
    learning_rate=3e-3,
    foresight=1.0,
    heldout_questions=300,
)


def ensure_tiny_description_labeller(
    cache_dir: Path | None = None,
    policy: Path | None = None,
    recipe: LabellerRecipe = RECIPE,
    seed: int | None = None,
) -> Path:
    """Return the directory of a labeller of descriptions, making it on first use.

    policy: the one it starts from; made if not given. seed: in place of the recipe's, and of the
    policy that is made for it. The first use takes one or two minutes on one core, and three or
    four more for the policy.
    """
    cache_dir = cache_dir or default_cache_dir()
    policy = policy or ensure_tiny_vision_policy("tiny_describer", cache_dir, seed)
    recipe = recipe if seed is None else replace(recipe, seed=seed)

    def opened(tokenizer: PreTrainedTokenizerFast) -> DescribingTask:
        return DescribingTask.open(policy, tokenizer, all_ways(), recipe.seed)

    decides = [asdict(recipe), MISTAKES, WORDS, policy.name]
    directory = cache_dir / f"tiny_description_labeller-{digest(decides)}"
    return make_labeller(directory, policy, recipe, DescriptionClaims, opened)


class DescriptionClaims(Claims):
    """Single sentences of descriptions."""

    words = WORDS
    mistakes = MISTAKES

    def pair(self, rng: np.random.Generator, question: Question, mistake: str) -> tuple[str, str]:
        parts = question.scene.parts
        shown = [(place, shape) for place, shape in enumerate(parts, 1) if shape is not None]
        if mistake == "number":
            wrong = another(rng, tuple(NUMBERS), len(shown))
            return count_claim(len(shown)), count_claim(wrong)
        place, shape = shown[rng.integers(len(shown))]
        right = part_claim(place, shape)
        colour, form = another(rng, tuple(COLOURS), shape.colour), another(rng, FORMS, shape.form)
        others = [other for _, other in shown if other != shape]
        if mistake == "elsewhere" and others:
            return right, part_claim(place, others[rng.integers(len(others))])
        if mistake == "form":
            return right, part_claim(place, Shape(shape.colour, form))
        if mistake == "invented":
            empty = [place for place, shape in enumerate(parts, 1) if shape is None] or [place]
            return right, part_claim(empty[rng.integers(len(empty))], Shape(colour, form))
        return right, part_claim(place, Shape(colour, shape.form))

    def asked(self, question: Question, claim: str) -> str:
        # Within a question a part keeps its capital, as a name does.
        return f"{LEAD}{claim.rstrip('.').replace('There', 'there')}{REQUEST}"

    def visual_tokens(self, question: Question) -> int:
        return len(question.scene.parts)

    def loss_beside(
        self, head: nn.Module, states: States, questions: Sequence[Question], recipe: LabellerRecipe
    ) -> Tensor:
        def ids(words: Sequence[str]) -> Tensor:
            tokenizer = self.task.tokenizer
            return torch.tensor(tokenizer.convert_tokens_to_ids([f" {word}" for word in words]))

        token_ids, count = states.token_ids, len(questions)
        numbers, colours, forms = map(ids, (tuple(NUMBERS.values()), tuple(COLOURS), FORMS))
        # The words that may be wrong, of which both claims to a question have as many.
        said = torch.isin(token_ids, torch.cat([numbers, colours, forms]))  # [2 * N, T]
        # A verdict at each of them: a claim holds as far as it is the right one.
        holds = (token_ids == token_ids[:count].repeat(2, 1)).cumprod(dim=1)[said]
        verdicts = head(states.hidden[said])[
            :, self.task.tokenizer.convert_tokens_to_ids([NO, YES])
        ]
        loss = recipe.naming * cross_entropy(verdicts, holds)
        # Foresight: number, colour and form are foretold from the position before each. Early, so
        # that a layer is left to compare a word with what was foretold.
        token_ids, early, said = token_ids[:count], states.early[:count], said[:count]
        before = head(early[said.roll(-1, dims=1)])
        loss = loss + recipe.foresight * cross_entropy(before, token_ids[said])
        # The word of a part foretells its form too, so that it stands for the whole shape.
        at_part = torch.isin(token_ids, colours).roll(-1, dims=1)
        if at_part.any():
            form = token_ids[torch.isin(token_ids, forms)]  # [claims about parts]
            right = (form[:, None] == forms).long().argmax(dim=1)
            loss = loss + recipe.foresight * cross_entropy(head(early[at_part])[:, forms], right)
        # Naming: at each visual token, which of the colours and which of the forms is seen there,
        # or that nothing is.
        markers = self.task.tokenizer.convert_tokens_to_ids(list(MARKERS.values()))
        seen = head(early[torch.isin(token_ids, torch.tensor(markers))])  # [parts, V]
        parts = [part for question in questions for part in question.scene.parts]
        for kind, names in (("colour", tuple(COLOURS)), ("form", FORMS)):
            choices = (*names, NOTHING)
            right = [choices.index(getattr(part, kind) if part else NOTHING) for part in parts]
            loss = loss + recipe.naming * cross_entropy(seen[:, ids(choices)], torch.tensor(right))
        return loss
