"""The task of the built-in policies that see: to add the digits of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policy.builtin.tokenizer import EOS
from policy.builtin.warmup import Question, Task, laid_out
from policy.models.checks import read_config
from policy.models.family import open_visual_inputs
from rl.config.data import SourceConfig
from rl.config.section import Section
from rl.data.media.families import unsampled_token_ids, vision_family
from rl.data.media.names import RenderedImage
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures import draw_scene, read_settings

TASK_NAME = "digits"
# What a warmed policy is right on now and then, as a run's `data.settings`.
TASK: dict[str, Any] = {
    "wording": "terse",
    # A digit has 28 x 28 pixels of its own: one visual token of the Qwen policy.
    "width": 84,
    "height": 28,
    "jitter": 0.75,
    "noise": [0.1, 0.3],
}
# By thinking: longer than any worked example, so that only what is wrong anyway is cut.
MAX_RESPONSE_TOKENS = {False: 6, True: 30}


@dataclass(frozen=True, kw_only=True)
class PictureTask(Task):
    """Pictures of digits of one kind."""

    settings: Section
    prompt_ids: dict[bool, list[int]]
    """By thinking: token ids of every prompt, since all pictures have one size."""
    unsampled: list[int]
    """Token ids that no engine samples: those that stand for pictures."""

    @classmethod
    def open(
        cls,
        directory: Path,
        tokenizer: PreTrainedTokenizerFast,
        settings: dict[str, Any],
        seed: int = 0,
        slips: Slips | None = None,
    ) -> PictureTask:
        """directory: of the policy, all but its weights. slips: of the worked examples."""
        data = SourceConfig(kind="visual", path=TASK_NAME, settings=settings)
        inputs = open_visual_inputs(directory, data)
        model_type = read_config(directory).model_type
        family = vision_family(model_type)
        assert inputs is not None and family is not None
        checked, ids = read_settings(TASK_NAME, settings), {}
        question = draw_scene(TASK_NAME, checked, 0, 0, False).question
        first = RenderedImage(TASK_NAME, 0, 0, False, place=0)
        content: Any = [{"type": "image"}, {"type": "text", "text": question}]
        if not family.chat_takes_parts:
            content = f"{family.markers['image']}\n{question}"
        for thinking in (False, True):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                enable_thinking=thinking,
                tokenize=False,
            )
            ids[thinking] = list(inputs.expanded(tokenizer(text)["input_ids"], [first]))
        unsampled = list(unsampled_token_ids(model_type, tokenizer.get_vocab()))
        shared = tokenizer, inputs, seed, slips
        return cls(*shared, settings=checked, prompt_ids=ids, unsampled=unsampled)

    def questions(self, first: int, count: int, *, heldout: bool) -> list[Question]:
        questions, seed = [], 0 if heldout else self.seed
        for index in range(first, first + count):
            scene = draw_scene(TASK_NAME, self.settings, seed, index, heldout)
            picture = RenderedImage(TASK_NAME, seed, index, heldout, place=0)
            questions.append(Question(scene.question, scene.answer, scene.digits, picture))
        return questions

    def worked_example(self, question: Question, thinking: bool) -> str:
        return worked_example(question.addends, thinking, self.slips)

    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        return [self.prompt_ids[thinking]] * len(questions)

    def sampled(
        self, model: PreTrainedModel, questions: Sequence[Question], thinking: bool
    ) -> list[str]:
        unwritten = [self.tokenizer.pad_token_id] * MAX_RESPONSE_TOKENS[thinking]
        rows = [[*prompt, *unwritten] for prompt in self.prompts(questions, thinking)]
        token_ids, visual = laid_out(self, questions, rows)
        start = token_ids.shape[1] - len(unwritten)
        # Written out, because `generate` of transformers knows nothing of our visual arguments.
        for position in range(start, token_ids.shape[1]):
            # What is not written yet stands on the right, where causality hides it.
            logits = model(input_ids=token_ids, use_cache=False, **visual).logits[:, position - 1]
            # As the engines sample: a visual token in an answer would read as a picture.
            logits[:, self.unsampled] = -torch.inf  # [B, V]
            token_ids[:, position] = torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]
        texts = self.tokenizer.batch_decode(token_ids[:, start:])
        return [text.partition(EOS)[0] for text in texts]


def worked_example(digits: Sequence[int], thinking: bool, slips: Slips | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, the first line is what the picture shows, and each further line adds one digit
    to the sum so far, zero-padded so that the two stand side by side: for 3, 7 and 2
    `372\\n7+03=10\\n2+10=12\\n`, closed by `</think>`, a blank line and the answer.
    """
    if not thinking:
        total = sum(digits)
        if slips:
            total = slips.maybe(total, slips.answer, 2)
        return f"{total:02d}"
    if slips:
        # Reasoning goes on from what was read, right or wrong: the example errs in seeing alone.
        # Without such errors a policy would be sure of all that it sees.
        rng, rate = slips.rng, slips.reasoning
        digits = [int(rng.integers(10)) if rng.random() < rate else digit for digit in digits]
    lines, total = ["".join(map(str, digits))], digits[0]
    for digit in digits[1:]:
        lines.append(f"{digit}+{total:02d}={total + digit:02d}")
        total += digit
    return "\n".join([*lines, f"</think>\n\n{total:02d}"])
