"""What a built-in policy that sees is asked: the scenes of a task of rl/data/tasks/pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policy.builtin.tokenizer import EOS
from policy.builtin.warmup import Question, Task, laid_out
from policy.models.checks import read_config
from policy.models.family import open_visual_inputs
from rl.config.data import SourceConfig
from rl.config.section import Section
from rl.data.media.families import unsampled_token_ids, vision_family
from rl.data.media.names import RenderedMedium, rendered
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures import draw_scene, read_settings


def mixed(
    task_name: str,
    settings: dict[str, Any],
    ways: Mapping[str, dict[str, Any]],
    video: Mapping[str, Any],
    changes: dict[str, Any],
) -> SourceConfig:
    """A task in several ways of being shown.

    settings: of all ways; what a way has of its own goes over them, and `changes` over both. ways,
    video: as a run's `data.mix` and `data.video`, the ways without what is equal in all.
    """
    mix = {
        name: way
        | {
            "kind": "visual",
            "path": task_name,
            "settings": settings | way.get("settings", {}) | changes,
        }
        for name, way in ways.items()
    }
    return SourceConfig.model_validate({"mix": mix, "video": video})


@dataclass(frozen=True, kw_only=True)
class VisualTask(Task):
    """Scenes of one task, each with the task's one question, in pictures and videos."""

    task_name: ClassVar[str]
    """In rl/data/tasks/pictures."""
    max_response_tokens: ClassVar[Mapping[bool, int]]
    """By thinking: longer than any worked example, so that only what is wrong anyway is cut."""

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
    ) -> Self:
        """directory: of the policy, all but its weights. slips: of the worked examples."""
        inputs = open_visual_inputs(directory, data)
        model_type = read_config(directory).model_type
        family = vision_family(model_type)
        assert inputs is not None and family is not None
        settings, ids, ways = {}, {}, []
        for name, source in data.sources.items():
            settings[name] = read_settings(cls.task_name, source.settings)
            ways += [name] * int(getattr(source, "weight", 1))
            scene = draw_scene(cls.task_name, settings[name], 0, 0, False)
            media = rendered(cls.task_name, scene.media, 0, 0, False, name)
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
            scene = draw_scene(self.task_name, self.settings[way], seed, index, heldout)
            media = rendered(self.task_name, scene.media, seed, index, heldout, way)
            questions.append(self.asked(scene, media))
        return questions

    def asked(self, scene: Any, media: tuple[RenderedMedium, ...]) -> Question:
        """The question about a scene, which these media show."""
        return Question(scene.question, scene.answer, (), media, scene)

    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        return [self.prompt_ids[question.media[0].source, thinking] for question in questions]

    def sampled(
        self, model: PreTrainedModel, questions: Sequence[Question], thinking: bool
    ) -> list[str]:
        unwritten = [self.tokenizer.pad_token_id] * self.max_response_tokens[thinking]
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
