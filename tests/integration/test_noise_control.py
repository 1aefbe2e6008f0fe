"""What a vision policy answers comes from the picture: with noise in its place, it is chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from policy.builtin.sight.picture_task import TASK, WAYS, PictureTask, all_ways, one_picture
from policy.builtin.sight.seeing import EYES, FRAMES, LANGUAGE, RESAMPLER, TOWER, SeeingRecipe
from policy.builtin.sight.vision_policy import (
    TinyVisionName,
    VisionWarmupRecipe,
    ensure_tiny_vision_policy,
)
from policy.builtin.warmup import heldout_accuracy
from policy.models.minicpmv import MiniCPMVInputs
from policy.models.qwen_vl import QwenVLInputs
from rl.data.media.files import film
from rl.data.media.names import RenderedMedium, StillImage, Video
from rl.loop.interfaces import VisualInputs

# The likeliest of the sums of three digits, 13 or 14, is right in 75 of 1,000 pictures.
CHANCE = 0.075
PICTURES = 256
# Three standard deviations of chance over that many pictures.
SLACK = 3 * (CHANCE * (1 - CHANCE) / PICTURES) ** 0.5


class Noise:
    """A store that shows every picture, and every frame of a video, as noise of its own."""

    def read(self, medium: RenderedMedium) -> StillImage | Video:
        rng = np.random.default_rng((medium.index, medium.place))
        shades = rng.integers(0, 256, (3, TASK["height"], TASK["width"], 3), dtype=np.uint8)
        images = [Image.fromarray(each) for each in shades]
        if medium.kind == "video":
            return film(images, WAYS["video"]["settings"]["seconds_each"][:1] * 3, all_ways().video)
        return StillImage(images[0], "noise")


# Warm-ups on clean pictures, which such a policy then reads well enough to show it.
IMITATION = VisionWarmupRecipe(min_steps=450, max_steps=450, misread=0.0, answer_slips=0.0)
STAGES = SeeingRecipe(stages=(LANGUAGE, TOWER, RESAMPLER, FRAMES, EYES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe", "open_inputs"),
    [("tiny_qwen_vl", IMITATION, QwenVLInputs), ("tiny_minicpmv", STAGES, MiniCPMVInputs)],
)
def test_noise_in_a_pictures_place_brings_accuracy_to_chance(
    tmp_path: Path,
    name: TinyVisionName,
    recipe: VisionWarmupRecipe | SeeingRecipe,
    open_inputs: Callable[[Path, Any], VisualInputs],
):
    policy = ensure_tiny_vision_policy(name, tmp_path, recipe=recipe)
    model = AutoModelForImageTextToText.from_pretrained(policy, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
    shown = one_picture if name == "tiny_qwen_vl" else all_ways
    clean = shown(jitter=recipe.clean_jitter, noise=recipe.clean_noise)
    task = PictureTask.open(policy, tokenizer, clean)
    torch.manual_seed(0)
    seen = heldout_accuracy(model, task, PICTURES)
    blind = heldout_accuracy(model, replace(task, inputs=open_inputs(policy, Noise())), PICTURES)
    assert min(seen.values()) > 3 * CHANCE
    assert max(blind.values()) < CHANCE + SLACK
