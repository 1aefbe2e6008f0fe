"""The task of the built-in policies that see: to add the digits of a picture or a video."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policy.builtin.tokenizer import EOS
from policy.builtin.warmup import Question, Task, laid_out
from policy.models.checks import read_config
from policy.models.family import open_visual_inputs
from rl.config.data import SourceConfig
from rl.config.section import Section
from rl.data.media.families import unsampled_token_ids, vision_family
from rl.data.media.names import rendered
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
# Ways to be shown the digits, as a run's `data.mix`: weights, and what differs from TASK.
WAYS: dict[str, dict[str, Any]] = {
    "picture": {"weight": 2},
    "pictures": {"weight": 1, "settings": {"shown": "apart"}},
    # Six frames at VIDEO's rate, two of each digit.
    "video": {"weight": 2, "settings": {"shown": "in_turn", "seconds_each": [0.667, 0.667]}},
    # Over before a second frame is taken. Held out alone: there is nothing to learn from it.
    "burst": {
        "weight": 0,
        "heldout_weight": 0.5,
        "settings": {"shown": "in_turn", "seconds_each": [0.15, 0.3]},
    },
}
VIDEO = {"fps": 3, "max_frames": 6, "frames_per_group": 6}
"""A run's `data.video`: one package of up to six frames."""
# By thinking: longer than any worked example, so that only what is wrong anyway is cut.
MAX_RESPONSE_TOKENS = {False: 6, True: 30}


def one_picture(**changes: Any) -> SourceConfig:
    """The task in one picture. changes: of its settings."""
    return SourceConfig(kind="visual", path=TASK_NAME, settings=TASK | changes)


def all_ways(**changes: Any) -> SourceConfig:
    """The task in pictures and videos. changes: of the settings of all ways."""
    mix = {
        name: way
        | {
            "kind": "visual",
            "path": TASK_NAME,
            "settings": TASK | way.get("settings", {}) | changes,
        }
        for name, way in WAYS.items()
    }
    return SourceConfig.model_validate({"mix": mix, "video": VIDEO})


@dataclass(frozen=True, kw_only=True)
class PictureTask(Task):
    """Digits in pictures and videos."""

    settings: Mapping[str, Section]
    """By way of being shown, as `data.mix` names it; of a single way, by an empty text."""
    prompt_ids: Mapping[tuple[str, bool], list[int]]
    """By way and thinking: token ids of every prompt, since all media of a way have one size."""
    ways: tuple[str, ...]
    """Of the questions by number, over and over."""
    unsampled: list[int]
    """Token ids that no engine samples: those that stand for pictures."""

    @classmethod
    def open(
        cls,
        directory: Path,
        tokenizer: PreTrainedTokenizerFast,
        data: SourceConfig,
        seed: int = 0,
        slips: Slips | None = None,
    ) -> PictureTask:
        """directory: of the policy, all but its weights. slips: of the worked examples."""
        inputs = open_visual_inputs(directory, data)
        model_type = read_config(directory).model_type
        family = vision_family(model_type)
        assert inputs is not None and family is not None
        settings, ids, ways = {}, {}, []
        for name, source in data.sources.items():
            settings[name] = read_settings(TASK_NAME, source.settings)
            ways += [name] * int(getattr(source, "weight", 1))
            scene = draw_scene(TASK_NAME, settings[name], 0, 0, False)
            media = rendered(TASK_NAME, scene.media, 0, 0, False, name)
            parts = [
                *({"type": kind} for kind in scene.media),
                {"type": "text", "text": scene.question},
            ]
            messages = family.messages([{"role": "user", "content": parts}])
            for thinking in (False, True):
                text = tokenizer.apply_chat_template(
                    messages,
                    add_generation_prompt=True,
                    enable_thinking=thinking,
                    tokenize=False,
                )
                token_ids = tokenizer(text)["input_ids"]
                ids[name, thinking] = list(inputs.expanded(token_ids, media))
        unsampled = list(unsampled_token_ids(model_type, tokenizer.get_vocab()))
        shared = tokenizer, inputs, seed, slips
        return cls(
            *shared, settings=settings, prompt_ids=ids, ways=tuple(ways), unsampled=unsampled
        )

    def in_ways(self, names: Collection[str]) -> Self:
        """The same task, shown in these ways alone."""
        return replace(self, ways=tuple(way for way in self.ways if way in names))

    def questions(self, first: int, count: int, *, heldout: bool) -> list[Question]:
        questions, seed = [], 0 if heldout else self.seed
        for index in range(first, first + count):
            way = self.ways[index % len(self.ways)]
            scene = draw_scene(TASK_NAME, self.settings[way], seed, index, heldout)
            media = rendered(TASK_NAME, scene.media, seed, index, heldout, way)
            questions.append(Question(scene.question, scene.answer, scene.digits, media))
        return questions

    def worked_example(self, question: Question, thinking: bool) -> str:
        return worked_example(question.addends, thinking, self.slips)

    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        return [self.prompt_ids[question.media[0].source, thinking] for question in questions]

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
